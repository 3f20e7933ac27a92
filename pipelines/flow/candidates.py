"""The ways to serve a model: each recipe, with what its artifact would be, what loads it on a hardware, and what it
reads and multiplies there. Nothing is ordered here."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from pipelines.checkpoint.headers import Checkpoint, TensorInfo
from pipelines.checkpoint.names import EXPERTS, NOT_TEXT
from pipelines.core.device import cpu_lines
from pipelines.core.errors import BadInput
from pipelines.core.strict_yaml import Frozen
from pipelines.core.text import size
from pipelines.flow.estimate import EXPERT_COUNTS
from pipelines.formats.gguf_types import FileType
from pipelines.formats.schemes import SCHEMES, SchemeName
from pipelines.planning.plan import GgufPlan, Plan
from pipelines.planning.stage import plan_elsewhere
from pipelines.recipe.recipe import Recipe
from pipelines.serving.hardware import Hardware, Numbers
from pipelines.serving.key_values import number, token_bytes
from pipelines.serving.loads import TITLES, Answer, Loads, Runtime, loads_all
from pipelines.serving.roofline import F16_RATE, GGUF_RATES, PRIOR, Rates, Weights, Work

RUNTIMES: tuple[Runtime, ...] = ("vllm", "sglang", "tensorrt-llm", "llama.cpp")
"""Runtimes in the order in which they are taken where several compute as the format says."""
SERVES: tuple[Answer, ...] = ("native", "emulated")
"""Answers of a runtime that serves what was judged, the better first."""
VLLM_CPU: dict[SchemeName, float] = {"W8A8": 1.3, "W4A16": 0.6, "W4A16_ASYM": 0.6, "FP8_DYNAMIC": 0.1}
"""Tokens a second against bfloat16 in vLLM on a processor: vllm-cpu 0.32.0 on the default model, with W4A16 for both
INT4 schemes. The roofline knows nothing of these kernels."""
FP8_CACHE = 8.9
"""Compute capability from which on keys and values are kept in FP8, as the recipe that asks for it says."""
EMBEDDING = re.compile(r"(^|[._])(embed\w*|wte|wpe|token_embd|position_embd)(\.|$)")
HEADS = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
GGUF_EXPERTS = re.compile(r"_exps\.weight$")


class LeftOut(Frozen):
    """A recipe that is not recommended, and why."""

    recipe: str
    why: str


class Candidate(NamedTuple):
    """A recipe that something serves on the hardware."""

    recipe: Recipe
    plan: Plan
    runtime: Runtime
    loads: Loads
    work: Work
    speed: float | None
    """Speed against 16 bits where that is measured and no matter of the roofline."""


def candidate(recipe: Recipe, checkpoint: Checkpoint, hardware: Hardware, rates: Rates = PRIOR) -> Candidate | LeftOut:
    """Return what `recipe` makes of `checkpoint` and what serves it on `hardware`, or why it is no choice."""
    try:
        plan = plan_elsewhere(recipe, checkpoint)
    except BadInput as error:
        return LeftOut(recipe=recipe.name, why=f"cannot be made of this model: {error.problems[0].what}")
    runtime, answer = _loader(plan, hardware)
    speed = _speed_on_cpu(recipe, runtime) if hardware.is_cpu else None
    work = _work(plan, rates, answer)
    if why := _objection(plan, runtime, answer, hardware, work, speed):
        return LeftOut(recipe=recipe.name, why=why)
    return Candidate(recipe, plan, runtime, answer, work, speed)


def _objection(plan: Plan, runtime: Runtime, answer: Loads, hardware: Hardware, work: Work, speed: float | None) -> str:
    """Return why `runtime` is not known to serve the artifact on `hardware`, or how fast; empty where it is."""
    name, is_gguf = TITLES[runtime], isinstance(plan, GgufPlan)
    if answer.answer not in SERVES:
        return f"{name}: {answer.reason or answer.answer}"
    if answer.flag and hardware.is_cpu and not any(answer.flag in line.split() for line in cpu_lines("flags")):
        return f"{name}: needs a processor with {answer.flag}"
    if plan.recipe.kv_cache and (hardware.capability or 0.0) < FP8_CACHE:
        return f"no source tells that {name} keeps keys and values in FP8 there"
    if hardware.is_cpu:
        return "" if is_gguf or speed else f"no figure tells the speed of {name} with it on a processor"
    unknown = sorted({one.numbers for one in work.weights} - {*hardware.operations})
    return f"no source tells how many {unknown[0]} operations {hardware.name} does" if unknown else ""


def _speed_on_cpu(recipe: Recipe, runtime: Runtime) -> float | None:
    """Return the speed of a checkpoint against bfloat16 in vLLM on a processor; None where no figure tells it."""
    if runtime != "vllm" or not {*recipe.schemes} <= VLLM_CPU.keys():
        return None
    return min(VLLM_CPU[scheme] for scheme in recipe.schemes)


def _loader(plan: Plan, hardware: Hardware) -> tuple[Runtime, Loads]:
    """Return the runtime to take, and what it does with the artifact: the first that computes as the format says, else
    the first that serves it, else the first that could."""
    is_gguf = isinstance(plan, GgufPlan)
    runtimes = ("llama.cpp",) if is_gguf else RUNTIMES[:-1]
    stored = "gguf" if isinstance(plan, GgufPlan) else plan.recipe.packing
    formats = () if isinstance(plan, GgufPlan) else plan.formats
    found: list[tuple[Runtime, Loads]] = []
    for runtime in runtimes:
        found.append((runtime, loads_all(runtime, stored, formats, hardware.place)))
    return min(found, key=lambda one: SERVES.index(one[1].answer) if one[1].answer in SERVES else len(SERVES))


def unquantized(checkpoint: Checkpoint, rates: Rates = PRIOR) -> Work:
    """Return `checkpoint` as it is served in 16 bits."""
    weights = (_in_16_bits(tensor, checkpoint, rates) for tensor in _multiplied(checkpoint))
    return _model(checkpoint, _together(weights), 16)


def _work(plan: Plan, rates: Rates, answer: Loads) -> Work:
    if isinstance(plan, GgufPlan):
        return _model(plan.checkpoint, _together(_gguf_weights(plan, rates)), 16)
    weights: list[Weights] = []
    for tensor in _multiplied(plan.checkpoint):
        module = plan.quantized.get(tensor.name.removesuffix(".weight"))
        one = _in_16_bits(tensor, plan.checkpoint, rates)
        if module and module.scheme:
            stored = module.bytes_after
            numbers, unpacked = _arithmetic(module.scheme, answer)
            share = rates.share(stored * 8 / tensor.elements)
            changes = {"bytes": float(stored), "share": share, "numbers": numbers, "unpacked": unpacked}
            one = one.model_copy(update=changes)
        weights.append(one)
    return _model(plan.checkpoint, _together(weights), 8 if plan.attentions else 16)


def _model(checkpoint: Checkpoint, weights: tuple[Weights, ...], cache_bits: int) -> Work:
    config = checkpoint.config
    cache = token_bytes(config, cache_bits)
    return Work(weights=weights, layers=number(config, "layers"), cache_bytes=float(cache))


def _arithmetic(scheme: SchemeName, answer: Loads) -> tuple[Numbers, bool]:
    """Return what is multiplied of weights in `scheme`, and whether they are turned into that first."""
    chosen = SCHEMES[scheme]
    inputs = chosen.activations
    if inputs is None or answer.answer == "emulated":
        return "16 bits", chosen.weights.bits < 16
    numbers: Numbers = "INT8" if inputs.kind == "int" else "FP8" if inputs.bits == 8 else "FP4"
    return numbers, chosen.weights.bits != inputs.bits


def _multiplied(checkpoint: Checkpoint) -> Iterator[TensorInfo]:
    """Yield the weights that tokens are multiplied with: an embedding is only where it is the head too."""
    tensors = [tensor for tensor in checkpoint.tensors if len(tensor.shape) > 1 and not NOT_TEXT.search(tensor.name)]
    has_head = any(HEADS.search(tensor.name) for tensor in tensors)
    yield from (tensor for tensor in tensors if not _is_embedding(tensor))
    if not has_head:
        yield from sorted(filter(_is_embedding, tensors), key=lambda tensor: -tensor.elements)[:1]


def _is_embedding(tensor: TensorInfo) -> bool:
    return EMBEDDING.search(tensor.name) is not None


def _in_16_bits(tensor: TensorInfo, checkpoint: Checkpoint, rates: Rates) -> Weights:
    active = _active(checkpoint) if EXPERTS.match(tensor.name) else 1.0
    return Weights(count=tensor.elements, bytes=2.0 * tensor.elements, share=rates.share(16), active=active)


def _gguf_weights(plan: GgufPlan, rates: Rates) -> Iterator[Weights]:
    matrices = [tensor for tensor in plan.tensors if len(tensor.shape) > 1]
    has_head = any(HEADS.search(tensor.name) for tensor in matrices)
    for tensor in matrices:
        if EMBEDDING.search(tensor.name) and (has_head or tensor.name.startswith("position")):
            continue
        active = _active(plan.checkpoint) if GGUF_EXPERTS.search(tensor.name) else 1.0
        share = _gguf_share(plan.method.type, rates) if tensor.quantized else rates.share(16)
        yield Weights(count=tensor.elements, bytes=float(tensor.bytes), share=share, active=active)


def _gguf_share(kind: FileType, rates: Rates) -> float:
    """Return the share of the bandwidth at which llama.cpp reads a file of this type."""
    if rates == PRIOR and kind in GGUF_RATES:
        return rates.share(16) * GGUF_RATES[kind] / F16_RATE
    return rates.share(BITS[kind])


BITS: dict[FileType, float] = {
    "Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.7, "Q4_K_M": 4.89, "Q4_0": 4.5, "IQ4_XS": 4.46, "IQ3_M": 3.76, "IQ2_M": 2.93,
}  # fmt: skip
"""Bits of a weight in a file of this type, by llama.cpp's table; of Q4_0, by its blocks."""


def _active(checkpoint: Checkpoint) -> float:
    """Return the share of a mixture's experts that a token goes to."""
    config = checkpoint.config.get("text_config") or checkpoint.config
    experts = next((int(config[key]) for key in EXPERT_COUNTS if config.get(key)), 1)
    return int(config.get("num_experts_per_tok") or experts) / experts


def _together(weights: Iterator[Weights] | list[Weights]) -> tuple[Weights, ...]:
    """Return `weights` with those summed that are read and multiplied alike."""
    alike: dict[tuple[float, Numbers, bool, float], list[Weights]] = {}
    for one in weights:
        alike.setdefault((one.share, one.numbers, one.unpacked, one.active), []).append(one)
    return tuple(
        group[0].model_copy(update={"count": sum(w.count for w in group), "bytes": sum(w.bytes for w in group)})
        for group in alike.values()
    )


def reads(work: Work) -> str:
    """Return a sentence's part on what a token reads and multiplies."""
    numbers = sorted({one.numbers for one in work.weights if one.numbers != "16 bits"})
    unpacked = any(one.unpacked for one in work.weights)
    how = f"multiplied in {' and '.join(numbers or ['16 bits'])}"
    return f"{size(sum(one.bytes for one in work.weights))} of weights, {'unpacked and ' if unpacked else ''}{how}"
