"""The fate of every tensor of a checkpoint in a GGUF: its name, its true type and its bytes, from headers alone.

Names come from the `gguf` package's own map, types from `gguf_types`. Both follow llama.cpp's converter for the
architectures below, which are the ones that the tests convert.
"""

import math
import re
from collections.abc import Iterable

from pipelines.checkpoint.headers import Checkpoint, TensorInfo
from pipelines.core.errors import Problem
from pipelines.core.strict_yaml import Frozen
from pipelines.formats.gguf_types import BLOCKS, Choice, Shape, TensorType, choose
from pipelines.recipe.methods import Gguf
from pipelines.recipe.recipe import Recipe

ARCHITECTURES = {
    "LlamaForCausalLM": "LLAMA",
    "MistralForCausalLM": "LLAMA",
    "MixtralForCausalLM": "LLAMA",
    "Qwen2ForCausalLM": "QWEN2",
    "Qwen2MoeForCausalLM": "QWEN2MOE",
    "Qwen3ForCausalLM": "QWEN3",
    "Qwen3MoeForCausalLM": "QWEN3MOE",
    "Gemma2ForCausalLM": "GEMMA2",
    "Gemma3ForCausalLM": "GEMMA3",
    "PhiForCausalLM": "PHI2",
    "Phi3ForCausalLM": "PHI3",
}
"""Name of an architecture in transformers → its name in llama.cpp."""
OTHER_RUNTIME = "use a recipe that makes no GGUF, like fp8 or int8-weight-only"
EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(.*)$")
NOT_STORED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|\.attn\.bias$")
"""Constants in old checkpoints, which every runtime computes."""


class GgufTensor(Frozen):
    """A tensor of the GGUF."""

    name: str
    sources: tuple[str, ...]
    """Tensors of the checkpoint that it is made of; several for the experts of a layer, none for what is computed."""
    shape: tuple[int, ...]
    """Shape as the checkpoint has it: rows first, the experts before them."""
    type: TensorType
    quantized: bool
    reason: str = ""
    """Reason why it is not of the type that the file type, or the recipe, gives it."""

    @property
    def elements(self) -> int:
        """Number of the values of the tensor."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of all blocks of the tensor."""
        block, size = BLOCKS[self.type]
        return self.elements // block * size


def file_name(checkpoint: Checkpoint, method: Gguf) -> str:
    """Return the name of the artifact's GGUF, like `SmolLM2-135M-Instruct-Q4_K_M.gguf`."""
    return f"{checkpoint.label.rpartition('/')[2]}-{method.type}.gguf"


class PlannedTensors(Frozen):
    """The tensors of a GGUF, and what speaks against it."""

    tensors: tuple[GgufTensor, ...] = ()
    problems: tuple[Problem, ...] = ()


def plan_tensors(recipe: Recipe, method: Gguf, checkpoint: Checkpoint) -> PlannedTensors:
    """Return every tensor of the GGUF that `recipe` with its `method` makes of `checkpoint`."""
    name = next(iter(checkpoint.config.get("architectures") or ["?"]))
    if name not in ARCHITECTURES:
        what = f"its architecture {name} is not one that quantgate converts to GGUF"
        remedy = f"{OTHER_RUNTIME}; it converts {', '.join(ARCHITECTURES)}"
        return PlannedTensors(problems=(Problem(str(checkpoint.folder / "config.json"), what, remedy),))
    architecture = ARCHITECTURES[name]
    named = _named(checkpoint, architecture)
    if unknown := [source.name for source in named.pop(None, [])]:
        what = f"llama.cpp has no place for {len(unknown)} of its tensors, like {unknown[0]}"
        return PlannedTensors(problems=(Problem(str(checkpoint.folder), what, OTHER_RUNTIME),))
    sources = {name: found for name, found in named.items() if name}
    shapes = {name: _shape(found) for name, found in sources.items()}
    columns = {name: shape[-1] for name, shape in shapes.items() if math.prod(shape[:-1]) > 1}  # one row is a vector
    choices = choose(columns, method.mixture, _model_shape(checkpoint, architecture))
    made = [_tensor(name, shapes[name], found, choices.get(name)) for name, found in sources.items()]
    return PlannedTensors(
        tensors=(*made, *_computed(checkpoint)),
        problems=(*_unfitting(recipe, method, columns), *_unmatched(recipe, method, choices)),
    )


def _named(checkpoint: Checkpoint, architecture: str) -> dict[str | None, list[TensorInfo]]:
    """Return name in the GGUF → the checkpoint's tensors it is made of; None → those that llama.cpp does not know."""
    import gguf

    layers = int(checkpoint.config["num_hidden_layers"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], layers)
    tied = checkpoint.config.get("tie_word_embeddings")
    named: dict[str | None, list[TensorInfo]] = {}
    for tensor in checkpoint.tensors:
        if NOT_STORED.search(tensor.name) or (tied and tensor.name == "lm_head.weight"):
            continue
        expert = EXPERT.match(tensor.name)
        key = f"{expert[1]}.{expert[3]}" if expert else tensor.name
        named.setdefault(names.get_name(key, try_suffixes=(".weight", ".bias")), []).append(tensor)
    return named


def _shape(sources: list[TensorInfo]) -> tuple[int, ...]:
    one = sources[0].shape
    return (len(sources), *one) if EXPERT.match(sources[0].name) else one


def _model_shape(checkpoint: Checkpoint, architecture: str) -> Shape:
    config = checkpoint.config
    heads, layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
    key_value_heads = int(config.get("num_key_value_heads") or heads)
    return Shape(
        layers=layers,
        heads_per_kv=heads // key_value_heads,
        experts=int(config.get("num_local_experts") or config.get("num_experts") or 0),
        is_70b=architecture == "LLAMA" and layers == 80 and heads != key_value_heads,
    )


def _tensor(name: str, shape: tuple[int, ...], sources: list[TensorInfo], choice: Choice | None) -> GgufTensor:
    if choice is None:  # the converter keeps vectors, norms and routers in 32 bits
        wide = len(shape) < 2 or name.endswith("_norm.weight") or "ffn_gate_inp" in name
        kind: TensorType = "F32" if wide else "F16"
        reason = ""
    else:
        kind = choice.type
        block = BLOCKS[choice.wanted][0]
        reason = "" if kind == choice.wanted else f"{choice.wanted} needs columns that {block} divides, not {shape[-1]}"
    return GgufTensor(
        name=name,
        sources=tuple(tensor.name for tensor in sources),
        shape=shape,
        type=kind,
        quantized=choice is not None,
        reason=reason,
    )


def _unfitting(recipe: Recipe, method: Gguf, columns: dict[str, int]) -> Iterable[Problem]:
    """Yield types for head and embedding that do not divide them: llama.cpp has no fallback there."""
    asked = {"output.weight": ("output", method.output), "token_embd.weight": ("embedding", method.embedding)}
    for name, (key, wanted) in asked.items():
        if wanted and name in columns and columns[name] % BLOCKS[wanted][0]:
            what = f"quantize.{key} {wanted} needs columns that {BLOCKS[wanted][0]} divides, and {name} has"
            instead = "null" if columns[name] % BLOCKS["Q8_0"][0] else "Q8_0"  # null: as the mixture has it, or F16
            yield Problem(f"recipe {recipe.name}", f"{what} {columns[name]}", f"use --set quantize.{key}={instead}")


def _unmatched(recipe: Recipe, method: Gguf, choices: dict[str, Choice]) -> Iterable[Problem]:
    """Yield patterns of the recipe that match no quantized tensor."""
    for pattern in method.tensors:
        if not any(re.search(pattern, name) for name in choices):
            remedy = f"they are named like {min(choices, default='?')}"
            what = f"quantize.tensors pattern '{pattern}' matches no tensor that is quantized"
            yield Problem(f"recipe {recipe.name}", what, remedy)


def _computed(checkpoint: Checkpoint) -> Iterable[GgufTensor]:
    """Yield the rotary frequencies that the converter adds where the model scales them (Llama 3.1, Phi 3)."""
    config = checkpoint.config
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    heads = int(config["num_attention_heads"])
    rotary = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    rotary = int(rotary * float(scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1))
    names = {"llama3": ("rope_freqs",), "longrope": ("rope_factors_long", "rope_factors_short")}.get(str(kind), ())
    for name in names:
        yield GgufTensor(name=f"{name}.weight", sources=(), shape=(rotary // 2,), type="F32", quantized=False)
