"""What becomes of every tensor of a checkpoint in a GGUF: its name, its true type and its bytes, from headers alone.

Names come from the `gguf` package's own map, types from `gguf_types`. Both follow llama.cpp's converter for the
architectures below, which are the ones that the tests convert.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path

from pipelines.checkpoint.headers import Checkpoint, TensorInfo
from pipelines.core.errors import Problem
from pipelines.core.strict_yaml import Frozen
from pipelines.formats.gguf_types import BLOCKS, Choice, Shape, TensorType, choose
from pipelines.recipe.recipe import Gguf, Recipe

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
"""transformers' name → llama.cpp's."""
OTHER_RUNTIME = "use a recipe that makes no GGUF, like fp8 or int8-weight-only"
IMATRIX = "imatrix.gguf"
"""What the importance matrix is called, beside the GGUF."""
EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(.*)$")
NOT_STORED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|\.attn\.bias$")
"""Constants in old checkpoints, which every runtime computes."""


class GgufTensor(Frozen):
    """A tensor of the GGUF."""

    name: str
    sources: tuple[str, ...]
    """The checkpoint's tensors that it is made of; several for the experts of a layer, none for what is computed."""
    shape: tuple[int, ...]
    """As the checkpoint has it: rows first, the experts before them."""
    type: TensorType
    quantized: bool
    reason: str = ""
    """Why it is not of the type that the file type, or the recipe, gives it."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        block, size = BLOCKS[self.type]
        return self.elements // block * size


def file_name(checkpoint: Checkpoint, method: Gguf) -> str:
    """What the artifact's GGUF is called: `SmolLM2-135M-Instruct-Q4_K_M.gguf`."""
    return f"{checkpoint.label.rpartition('/')[2]}-{method.type}.gguf"


def gguf_tensors(recipe: Recipe, checkpoint: Checkpoint, problems: list[Problem]) -> tuple[GgufTensor, ...]:
    """Every tensor of the GGUF that `recipe` makes of `checkpoint`."""
    assert isinstance(recipe.quantize, Gguf)
    architecture = next(iter(checkpoint.config.get("architectures") or ["?"]))
    if architecture not in ARCHITECTURES:
        what = f"its architecture {architecture} is not one that quantgate converts to GGUF"
        remedy = f"{OTHER_RUNTIME}; it converts {', '.join(ARCHITECTURES)}"
        problems.append(Problem(str(checkpoint.folder / "config.json"), what, remedy))
        return ()
    named = _named(checkpoint, ARCHITECTURES[architecture], problems)
    if problems:
        return ()
    shapes = {name: _shape(sources) for name, sources in named.items()}
    columns = {name: shape[-1] for name, shape in shapes.items() if math.prod(shape[:-1]) > 1}  # one row is a vector
    mixture = recipe.quantize.mixture
    choices = choose(columns, mixture, _model_shape(checkpoint, ARCHITECTURES[architecture]))
    problems += _unfitting(recipe, columns)
    problems += _unmatched(recipe, choices)
    made = [_tensor(name, shapes[name], sources, choices.get(name)) for name, sources in named.items()]
    return (*made, *_computed(checkpoint))


def _named(checkpoint: Checkpoint, architecture: str, problems: list[Problem]) -> dict[str, list[TensorInfo]]:
    """Name in the GGUF → the checkpoint's tensors it is made of."""
    import gguf

    layers = int(checkpoint.config["num_hidden_layers"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], layers)
    tied = checkpoint.config.get("tie_word_embeddings")
    named: dict[str, list[TensorInfo]] = {}
    unknown = []
    for tensor in checkpoint.tensors:
        if NOT_STORED.search(tensor.name) or (tied and tensor.name == "lm_head.weight"):
            continue
        expert = EXPERT.match(tensor.name)
        key = f"{expert[1]}.{expert[3]}" if expert else tensor.name
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            unknown.append(tensor.name)
        else:
            named.setdefault(name, []).append(tensor)
    if unknown:
        what = f"llama.cpp has no place for {len(unknown)} of its tensors, like {unknown[0]}"
        problems.append(Problem(str(checkpoint.folder), what, OTHER_RUNTIME))
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


def _unfitting(recipe: Recipe, columns: dict[str, int]) -> Iterable[Problem]:
    """Types that the recipe gives head or embedding and that do not divide them: llama.cpp has no fallback there."""
    assert isinstance(recipe.quantize, Gguf)
    asked = {"output.weight": ("output", recipe.quantize.output)}
    asked["token_embd.weight"] = ("embedding", recipe.quantize.embedding)
    for name, (key, wanted) in asked.items():
        if wanted and name in columns and columns[name] % BLOCKS[wanted][0]:
            what = f"quantize.{key} {wanted} needs columns that {BLOCKS[wanted][0]} divides, and {name} has"
            instead = "null" if columns[name] % BLOCKS["Q8_0"][0] else "Q8_0"  # null: as the mixture has it, or F16
            yield Problem(f"recipe {recipe.name}", f"{what} {columns[name]}", f"use --set quantize.{key}={instead}")


def _unmatched(recipe: Recipe, choices: dict[str, Choice]) -> Iterable[Problem]:
    assert isinstance(recipe.quantize, Gguf)
    for pattern in recipe.quantize.tensors:
        if not any(re.search(pattern, name) for name in choices):
            remedy = f"they are named like {min(choices, default='?')}"
            what = f"quantize.tensors pattern '{pattern}' matches no tensor that is quantized"
            yield Problem(f"recipe {recipe.name}", what, remedy)


def _computed(checkpoint: Checkpoint) -> Iterable[GgufTensor]:
    """The rotary frequencies that the converter adds where the model scales them (Llama 3.1, Phi 3)."""
    config = checkpoint.config
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    heads = int(config["num_attention_heads"])
    rotary = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    rotary = int(rotary * float(scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1))
    names = {"llama3": ("rope_freqs",), "longrope": ("rope_factors_long", "rope_factors_short")}.get(str(kind), ())
    for name in names:
        yield GgufTensor(name=f"{name}.weight", sources=(), shape=(rotary // 2,), type="F32", quantized=False)


def find_gguf(model: str | Path) -> Path | None:
    """Return the GGUF that `model` is, or the only one in its folder unless that is a checkpoint; None if there is
    none."""
    place = Path(model).expanduser()
    if place.is_file():
        return place if place.suffix == ".gguf" else None
    files = [file for file in place.glob("*.gguf") if file.name != IMATRIX]
    return files[0] if len(files) == 1 and not (place / "config.json").exists() else None
