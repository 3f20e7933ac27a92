"""The types that llama.cpp gives the tensors of a GGUF: `llama_tensor_get_type` of its `llama-quant.cpp`, for the types
of files that recipes name.

Plain data, no gguf: the plan asks before anything is converted, and `verify` holds the answer against the file.
"""

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from pipelines.core.strict_yaml import Frozen
from pipelines.formats.description import Changes

FileType = Literal["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "IQ3_M", "IQ2_M"]
TensorType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "IQ3_S",
    "IQ2_S",
]  # fmt: skip

BLOCKS: dict[TensorType, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q6_K": (256, 210), "Q5_K": (256, 176),
    "Q5_1": (32, 24), "Q5_0": (32, 22), "Q4_K": (256, 144), "Q4_1": (32, 20), "Q4_0": (32, 18), "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136), "IQ3_S": (256, 110), "IQ2_S": (256, 82),
}  # fmt: skip
"""Type of a tensor → number of elements in a block, and bytes of a block."""
DEFAULTS: dict[FileType, TensorType] = {
    "Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q4_K_M": "Q4_K", "Q4_0": "Q4_0", "IQ4_XS": "IQ4_XS",
    "IQ3_M": "IQ3_S", "IQ2_M": "IQ2_S",
}  # fmt: skip
CHANGES: dict[FileType, Changes] = {
    "Q8_0": Changes(discordance=0.02, deviation=0.03),
    "Q6_K": Changes(discordance=0.025, deviation=0.0375),
    "Q5_K_M": Changes(discordance=0.025, deviation=0.0375),
    "Q4_K_M": Changes(discordance=0.05, deviation=0.075),
    "Q4_0": Changes(discordance=0.10, deviation=0.15),
    "IQ4_XS": Changes(discordance=0.08, deviation=0.12),
    "IQ3_M": Changes(discordance=0.085, deviation=0.128),
    "IQ2_M": Changes(discordance=0.15, deviation=0.225),
}
"""What they typically change: about what was seen on the default model (docs/gate.md#what-a-suite-can-see)."""
FALLBACKS: dict[TensorType, TensorType] = {
    "IQ2_S": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
"""Type of a tensor → the one that it gets where no block of 256 divides its columns."""
NEEDS_IMATRIX: tuple[TensorType, ...] = ("IQ2_S",)
"""Types that llama.cpp does not write without an importance matrix."""
KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|altup|laurel|per_layer_model_proj|position_embd|token_types|ssm_conv1d|"
    r"shortconv\.conv\.weight|attn_rel_b"
)
"""Pattern of the names of tensors that llama.cpp leaves in the type the converter gave them."""


class Shape(Frozen):
    """The facts about a model that the rules depend on."""

    layers: int
    heads_per_kv: int
    """Query heads for each key-value head."""
    experts: int = 0
    is_70b: bool = False
    """Whether it is a Llama of 80 layers with grouped queries, which llama.cpp treats apart."""


class Mixture(Frozen):
    """The part of a recipe that decides tensors' types."""

    type: FileType
    imatrix: bool = False
    output: TensorType | None = None
    embedding: TensorType | None = None
    tensors: Mapping[str, TensorType] = Field(default={})
    """Regular expression searched for in names → type; the first that is found decides."""


class Choice(Frozen):
    """The type of a tensor, and the one its columns had no room for."""

    type: TensorType
    wanted: TensorType


def choose(columns: Mapping[str, int], mixture: Mixture, shape: Shape) -> dict[str, Choice]:
    """Return the type of each quantized tensor, by its name in the GGUF; those that are kept are left out.

    `columns` are the elements in a row (ne[0]) of every tensor of two or more dimensions. llama.cpp goes through the
    layers in order, and counts values and (but for mixtures of experts) down projections as it meets them.
    """
    tied, seen = "output.weight" not in columns, {"attn_v": 0, "ffn_down": 0}
    values = sum(_category(name) == "attn_v" for name in columns)
    choices: dict[str, Choice] = {}
    for name in sorted(columns, key=lambda name: (_layer(name), name)):
        if KEPT.search(name) or not name.endswith("weight"):
            continue
        category, asked = _category(name), _asked(name, mixture, tied)
        if asked is None:
            position, count = seen.get(category, _layer(name)), shape.layers
            if category == "attn_v":
                count = values
            elif shape.experts > 1 and mixture.type != "IQ2_M":
                position = _layer(name)
            tensor = _Tensor(category, columns[name], position, count, tied)
            asked = _chosen(tensor, mixture, shape)
            if category in seen:
                seen[category] += 1
        choices[name] = Choice(type=_fitting(asked, columns[name]), wanted=asked)
    return choices


class _Tensor:
    """The facts about a tensor that the rules depend on."""

    def __init__(self, category: str, columns: int, position: int, count: int, tied: bool) -> None:
        self.category, self.columns, self.tied = category, columns, tied
        self.early = position < count // 8
        """Whether the tensor is in the first eighth of the layers."""
        self.more = self.early or position >= 7 * count // 8 or (position - count // 8) % 3 == 2
        """Whether it gets more bits, as the first and the last eighth of the layers do, and every third between."""


def _asked(name: str, mixture: Mixture, tied: bool) -> TensorType | None:
    """Return the type that the recipe gives the tensor `name`; None where it gives none."""
    category = _category(name)
    if category == "token_embd" and mixture.embedding:
        return mixture.embedding
    if category == "output" and mixture.output:
        return mixture.output
    found = next((chosen for pattern, chosen in mixture.tensors.items() if re.search(pattern, name)), None)
    return found or (mixture.output if tied and category == "token_embd" else None)


CATEGORIES = {
    "attn_qkv.weight": "attn_v", "attn_kv_b.weight": "attn_v", "attn_v.weight": "attn_v", "attn_k.weight": "attn_k",
    "attn_output.weight": "attn_output", "ffn_down": "ffn_down",
}  # fmt: skip
"""Part of a tensor's name → its category in the rules; the first part that is found decides."""


def _category(name: str) -> str:
    if name in ("output.weight", "token_embd.weight", "per_layer_token_embd.weight"):
        return "output" if name == "output.weight" else "token_embd"
    return next((category for part, category in CATEGORIES.items() if part in name), "")


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _fitting(chosen: TensorType, columns: int) -> TensorType:
    for fitting in (chosen, FALLBACKS.get(chosen, chosen)):
        if columns % BLOCKS[fitting][0] == 0:
            return fitting
    return "F16"


def _chosen(tensor: _Tensor, mixture: Mixture, shape: Shape) -> TensorType:
    """Return the type that the file type gives a tensor, before its columns are looked at."""
    default = DEFAULTS[mixture.type]
    if tensor.category == "output" or (tensor.tied and tensor.category == "token_embd"):
        if tensor.columns % BLOCKS[default][0] or default == "Q8_0":
            return "Q8_0"
        return "Q5_K" if mixture.type == "IQ2_M" else "Q6_K"
    if mixture.type == "IQ2_M":
        return _of_two_bits(tensor, shape) or default
    if tensor.category in ("attn_v", "attn_k") and shape.experts == 8:
        return "Q8_0"
    match tensor.category:
        case "attn_v":
            return _value(tensor, mixture, shape) or default
        case "ffn_down":
            return _down(tensor, mixture, shape) or default
        case "attn_output" if shape.experts == 8 and mixture.type in ("Q4_K_M", "IQ3_M", "IQ4_XS"):
            return "Q5_K"
        case "attn_output" if mixture.type == "IQ3_M":
            return "Q4_K"
    return default


def _of_two_bits(tensor: _Tensor, shape: Shape) -> TensorType | None:
    match tensor.category:
        case "attn_v":
            return "Q4_K" if shape.heads_per_kv >= 4 or shape.experts >= 4 else "IQ3_S"
        case "attn_k":
            return "Q4_K" if shape.experts == 8 else None
        case "attn_output":
            return "Q5_K" if shape.experts == 8 else "IQ3_S"
        case "ffn_down":
            return "IQ3_S" if tensor.early else None
        case "token_embd":
            return "IQ3_S"
    return None


def _value(tensor: _Tensor, mixture: Mixture, shape: Shape) -> TensorType | None:
    match mixture.type:
        case "IQ3_M":
            return "Q5_K" if shape.is_70b else "Q4_K"
        case "IQ4_XS":
            return "Q5_K" if shape.heads_per_kv >= 4 else None
        case "Q4_K_M" | "Q5_K_M" if tensor.more:
            return "Q6_K"
        case "Q4_K_M" if shape.is_70b:
            return "Q5_K"
    return None


def _down(tensor: _Tensor, mixture: Mixture, shape: Shape) -> TensorType | None:
    match mixture.type:
        case "Q4_K_M" | "Q5_K_M" if tensor.more:
            return "Q6_K"
        case "IQ3_M" if tensor.early or (shape.experts == 8 and tensor.more):
            return "Q4_K"
        case "IQ4_XS" if tensor.early and not mixture.imatrix:
            return "Q5_K"
        case "Q4_0" if tensor.early and mixture.imatrix:
            return "Q4_1"
    return None
