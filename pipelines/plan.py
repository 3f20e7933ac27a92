"""What will become of every module, and what it will cost: from headers alone, before any weight is read.

Nothing here imports torch where there is no GPU: `quantgate plan` answers in a second or two.
"""

import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import psutil
from pydantic import Field

from pipelines import advice, environments
from pipelines.anatomy import Anatomy, Family, Place, check_complete, examine
from pipelines.checkpoint import BYTES, FLOAT, Checkpoint, TensorInfo, refuse_quantized
from pipelines.device import (
    SIZES,
    ComputeDtype,
    Dtype,
    check_dtype,
    choose_dtype,
    default_device,
    fits,
    has_cuda,
    model_bytes,
    own_dtype,
)
from pipelines.errors import BadInput, Problem, did_you_mean, refuse
from pipelines.gguf_plan import GgufTensor, gguf_tensors
from pipelines.models import load_model
from pipelines.packings import Form, Packing, cannot_hold, layout
from pipelines.readers import misread, uncomputable
from pipelines.recipe import Gguf, Method, Recipe, Rule, load_recipe
from pipelines.rehearsal import unreadable
from pipelines.schema import Frozen
from pipelines.schemes import SCHEMES, SMALLEST_GROUP, Layout, SchemeName
from pipelines.store import cache_dir

ROUTER = re.compile(
    r"(^|\.)(router(\.\w+)?|(mlp|block_sparse_moe|feed_forward|moe|mixer)\.gate(\.wg)?|shared_expert_gate)$"
)
NOT_LINEAR = re.compile(r"(^|[._])(embed\w*|\w*embeddings?|wte|wpe|\w*norm\d*|ln_\w+|rotary\w*)$")
"""Last name components of two-dimensional weights that no runtime calls linear."""
NOT_TEXT = re.compile(
    r"(^|\.)(vision\w*|visual|image_\w+|audio\w*|multi_modal_projector|mm_projector|embed_vision|embed_audio|mtp\w*)\."
)
"""Towers beside the language model and multi-token prediction: kept as they are."""
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
HEAD = "lm_head"
FUSED: tuple[tuple[str, ...], ...] = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
"""Modules that read the same input, and that runtimes load as one matrix."""
EXPERTS = re.compile(r"(.*\.experts)(\.|$)")

LIBRARIES_BYTES = 700 << 20  # torch, transformers and lm-eval resident, as measured
STREAM_BYTES = 600 << 20  # the above and a block of rows in float32, as measured
EVALUATION_BATCH_TOKENS = 16 * 512
EVALUATION_LOGITS_BYTES = 512 << 20
"""Of a forward pass of evaluation on a CPU, in float32."""
DIVERGENCE_CHUNKS, DIVERGENCE_CONTEXT = 16, 512
"""Held-out text that the divergence of a GGUF is measured on; llama.cpp scores the second half of each chunk."""
DISTANCE_CHUNKS, DISTANCE_CONTEXT = 8, 512
"""The same of other artifacts, which transformers measures."""


class Module(Frozen):
    """One linear module and what becomes of it."""

    name: str
    address: str
    """Its name in transformers' model, where that has such a module; that of the checkpoint may be shorter or older."""
    shape: tuple[int, ...]
    """(output features, input features)"""
    dtype: str
    scheme: SchemeName | None
    """None: kept as it is."""
    group_size: int | None = None
    packing: Packing = "compressed-tensors"
    """How its codes and scales are stored."""
    scales_input: bool = False
    """Whether smoothing factors are stored with it, which multiply what it reads (modelopt)."""
    reason: str = ""
    """Why it is kept, or what was changed to quantize it."""
    bytes_before: int

    @property
    def quantized(self) -> bool:
        return self.scheme is not None

    @property
    def parts(self) -> Layout:
        """The tensors that replace its weight; none when it is kept."""
        form = self.form
        if form is None:
            return {}
        factors: Layout = {"pre_quant_scale": (self.dtype, self.shape[1:])} if self.scales_input else {}
        return {**layout(form.packing, form.scheme, self.shape, self.dtype, form.group_size), **factors}

    @property
    def form(self) -> Form | None:
        """How its weight is stored; None when it is kept."""
        return Form(packing=self.packing, scheme=self.scheme, group_size=self.group_size) if self.scheme else None

    @property
    def bytes_after(self) -> int:
        return layout_bytes(self.parts) if self.scheme else self.bytes_before


Part = Literal["cache", "artifact"]
"""What takes disk space: of the cache, and where the artifact is published."""


class Need(Frozen):
    """What a stage is estimated to need of something, against what the machine has."""

    stage: str
    resource: Literal["memory", "disk"]
    where: str = ""
    needed: int
    available: int
    """Bytes."""
    parts: dict[Part, int] = Field(default={})
    """Of disk: what `needed` is made of."""


class Plan(Frozen):
    """A recipe applied to a checkpoint: immutable, printable, complete."""

    recipe: Recipe
    checkpoint: Checkpoint
    family: Family
    """The class of transformers that loads the model."""
    head: str
    """The module of that model which makes logits."""
    dtype: ComputeDtype
    """What models compute in on this machine, where they calibrate, are verified and evaluated; nothing is stored in
    it."""
    modules: tuple[Module, ...]
    attentions: tuple[str, ...] = ()
    """Attention modules whose keys and values are cached in FP8."""
    tensors: tuple[GgufTensor, ...] = ()
    """Of a GGUF, which has no modules."""
    needs: tuple[Need, ...]

    @cached_property
    def quantized(self) -> dict[str, Module]:
        return {module.name: module for module in self.modules if module.quantized}

    def stored_as(self, packing: Packing) -> "Plan":
        """The same plan, with its modules in another packing."""
        modules = (m.model_copy(update={"packing": packing}) if m.scheme else m for m in self.modules)
        fields = {name: getattr(self, name) for name in Plan.model_fields}
        return Plan(**{**fields, "modules": tuple(modules)})  # `model_copy` would take what is cached with it

    @property
    def form(self) -> Form:
        """That of every quantized module, in a packing that has one for all."""
        forms = {module.form for module in self.quantized.values() if module.form}
        (form,) = forms
        return form

    @property
    def formats(self) -> tuple[tuple[SchemeName, int | None], ...]:
        """The schemes of its modules, each with its group sizes."""
        return tuple(dict.fromkeys((module.scheme, module.group_size) for module in self.modules if module.scheme))

    @property
    def bytes_before(self) -> int:
        """Of all weights."""
        return self.checkpoint.weight_bytes

    @property
    def bytes_after(self) -> int:
        if self.tensors:
            return sum(tensor.bytes for tensor in self.tensors)
        changed = sum(module.bytes_after - module.bytes_before for module in self.modules)
        return self.bytes_before + changed + layout_bytes(self.cache_scales)

    @cached_property
    def stored(self) -> Layout:
        """Every tensor that the artifact holds: dtype and shape."""
        stored: Layout = {}
        for tensor in self.checkpoint.tensors:
            module = self.quantized.get(tensor.name.removesuffix(".weight"))
            if module and tensor.name.endswith(".weight"):
                stored |= {f"{module.name}.{suffix}": part for suffix, part in module.parts.items()}
            else:
                stored[tensor.name] = (tensor.dtype, tensor.shape)
        return stored | self.cache_scales

    @cached_property
    def cache_scales(self) -> Layout:
        """The tensors that a quantized KV cache adds, by full name."""
        dtype = next((module.dtype for module in self.modules), "BF16")
        return {f"{name}.{scale}": (dtype, (1,)) for name in self.attentions for scale in ("k_scale", "v_scale")}

    @property
    def bits_per_weight(self) -> float:
        """Of the whole artifact: every byte of every tensor, over the source's parameters."""
        return self.bytes_after * 8 / self.checkpoint.parameters


def make_plan(
    recipe: Recipe | str,
    model: Checkpoint | str | Path | None = None,
    to: Path | None = None,
    device: str | None = None,
    dtype: Dtype = "auto",
) -> Plan:
    """Decide, before any weight is read, what `recipe` does to `model` (the default model unless given), and what it
    computes in on `device` (a GPU where there is one, unless given) when `dtype` is asked for.

    Raises:
        BadInput: everything that makes the recipe impossible for this model or machine, at once.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    checkpoint = model if isinstance(model, Checkpoint) else load_model(model)
    refuse_quantized(checkpoint)
    anatomy = examine(checkpoint)
    problems = [*check_complete(checkpoint, anatomy), *check_dtype(checkpoint)]
    if any(place.kind == "transposed" for place in anatomy.places.values()):
        what = f"is a {anatomy.architecture}, which keeps its weights transposed (Conv1D)"
        problems.append(Problem(str(checkpoint.folder), what, advice.NONE))
        refuse(problems)
    computes = choose_dtype(dtype, device or default_device(), checkpoint)
    plan = _plan(recipe, checkpoint, computes, anatomy, problems)
    plan = plan.model_copy(update={"needs": _needs(plan, to)})
    problems += _lacks(plan.needs, plan)
    refuse(problems)
    refuse(_unreadable(plan, anatomy))
    return plan


def _plan(
    recipe: Recipe, checkpoint: Checkpoint, computes: ComputeDtype, anatomy: Anatomy, problems: list[Problem]
) -> Plan:
    """The plan, but for what it needs of the machine."""
    tensors: tuple[GgufTensor, ...] = ()
    modules: tuple[Module, ...] = ()
    attentions: tuple[str, ...] = ()
    if isinstance(recipe.quantize, Gguf):
        tensors = gguf_tensors(recipe, checkpoint, problems)
        refuse(problems)
    else:
        modules, attentions = _plan_modules(recipe, checkpoint, anatomy, problems)
    return Plan(
        recipe=recipe,
        checkpoint=checkpoint,
        family=anatomy.family,
        head=anatomy.head or HEAD,
        dtype=computes,
        modules=modules,
        attentions=attentions,
        tensors=tensors,
        needs=(),
    )


READABLE = ("fp8", "int8-weight-only", "gguf-q8_0")
"""Recipes without data that are tried when transformers could not load what another one makes."""


def _unreadable(plan: Plan, anatomy: Anatomy) -> Iterator[Problem]:
    """Yield that transformers, which the card names, could not load the artifact, and which recipes would do."""
    if not (why := unreadable(plan)):
        return
    others = [name for name in READABLE if name != plan.recipe.name and _is_readable(name, plan, anatomy)]
    what = f"transformers cannot load what it makes of {plan.checkpoint.label}: {why}"
    remedy = f"it could load what {' or '.join(others)} makes" if others else "no recipe here does better"
    yield Problem(f"recipe {plan.recipe.name}", what, remedy)


def _is_readable(name: str, plan: Plan, anatomy: Anatomy) -> bool:
    problems: list[Problem] = []
    try:
        other = _plan(load_recipe(name), plan.checkpoint, plan.dtype, anatomy, problems)
    except BadInput:
        return False
    return not problems and not unreadable(other)


def _plan_modules(
    recipe: Recipe, checkpoint: Checkpoint, anatomy: Anatomy, problems: list[Problem]
) -> tuple[tuple[Module, ...], tuple[str, ...]]:
    """The modules of a plan, and the attentions whose cache it quantizes."""
    assert not isinstance(recipe.quantize, Gguf)
    decided = _decide(recipe, checkpoint, anatomy)
    problems += (*decided.problems, *_advised(recipe, checkpoint, anatomy, decided))
    attentions = _attentions(recipe, checkpoint, decided.modules)
    if recipe.quantize.kv_cache and not attentions:
        what = f"quantize.kv_cache is set, but no attention module of {checkpoint.label} is known"
        without = ({"quantize.kv_cache": None}, {"quantize.kv_cache": None, "calibrate": None})
        (way,) = advice.helpful(recipe, without, lambda _: True)  # without data unless something else needs it
        problems.append(Problem(f"recipe {recipe.name}", what, f"leave it out: {way}"))
    return decided.modules, attentions


def _advised(recipe: Recipe, checkpoint: Checkpoint, anatomy: Anatomy, decided: "_Decided") -> Iterator[Problem]:
    """Yield why the recipe's settings do not suit the model, each with the settings that were tried and do."""
    for kind, found in decided.unsuited.items():

        def suits(other: Recipe, kind: Unsuited = kind) -> bool:
            tried = _decide(other, checkpoint, anatomy)
            return not tried.unsuited.get(kind) and tried.told <= decided.told

        ways = advice.helpful(recipe, _tries(kind, recipe, decided), suits)
        remedy = f"use {', or '.join(ways)}" if ways else advice.instead(suits)
        remedy = f"runtimes load them as one: {remedy}" if kind == "torn" else remedy
        where = str(checkpoint.folder) if kind == "nothing" else f"recipe {recipe.name}"
        yield from (Problem(where, what, remedy) for what in found)


def _tries(kind: "Unsuited", recipe: Recipe, decided: "_Decided") -> Iterator[advice.Settings]:
    """Yield what may make a recipe suit a model."""
    method = recipe.quantize
    assert not isinstance(method, Gguf)
    match kind:
        case "outside":
            yield {"quantize.ignore": [*method.ignore, *decided.outside]}
        case "torn":
            yield {"quantize.on_indivisible": "shrink"}
            yield from advice.widened(recipe, decided.tearing_rules, decided.whole)
            yield {"quantize.ignore": [pattern for pattern in method.ignore if pattern not in decided.tearing]}
            yield {"quantize.ignore": [*dict.fromkeys((*method.ignore, *decided.whole))]}
        case "nothing":
            yield {"quantize.ignore": [HEAD]}
            yield {"quantize.on_indivisible": "shrink"}
        case "indivisible" | "unstorable":
            yield from advice.regrouped(recipe, decided.widths)
            yield from ({"quantize.on_indivisible": action} for action in ("shrink", "skip"))
            yield {"export": "compressed-tensors"}


def disk_lacks(plans: Sequence[Plan]) -> list[Problem]:
    """What the artifacts of all `plans` together lack of disk space, where each alone has enough."""
    needs: dict[str, Need] = {}
    for need in (need for plan in plans for need in plan.needs if need.resource == "disk"):
        before = needs.get(need.where)
        parts = {part: size + (before.parts.get(part, 0) if before else 0) for part, size in need.parts.items()}
        needed = need.needed + (before.needed if before else 0)
        needs[need.where] = need.model_copy(
            update={"needed": needed, "parts": (before.parts if before else {}) | parts}
        )
    return _lacks(needs.values(), None)


def _lacks(needs: Iterable[Need], plan: Plan | None) -> list[Problem]:
    """What the machine lacks; of memory, with what the `plan` could do with less."""
    problems = []
    label, more = plan.checkpoint.label if plan else "", "use a larger machine"
    if plan and SIZES[own_dtype(plan.checkpoint)] < SIZES[plan.dtype]:
        more += f", or --dtype {own_dtype(plan.checkpoint)}"
    for need in needs:
        if need.needed > need.available:
            what = f"stage {need.stage} needs about {_size(need.needed)} of {need.resource}"
            what += f", {_size(need.available)} is free"
            remedy = _room(need) if need.resource == "disk" else more
            problems.append(Problem(need.where or label, what, remedy))
    return problems


ELSEWHERE: dict[Part, str] = {
    "cache": "set QUANTGATE_CACHE to a folder on another disk",
    "artifact": "publish to another disk (`quantgate run --to`, or start in a folder there)",
}


def _room(need: Need) -> str:
    """Say how to get the disk space that lacks: what to put elsewhere, so that the rest has enough."""
    alone = [part for part, size in need.parts.items() if need.needed - size <= need.available]
    ways = [ELSEWHERE[part] for part in alone] or [" and ".join(ELSEWHERE[part] for part in need.parts)]
    return ", or ".join(["free some", *ways])


def layout_bytes(parts: Layout) -> int:
    """Of all tensors of a layout."""
    return sum(BYTES[dtype] * math.prod(shape) for dtype, shape in parts.values())


def _decoder_layers(checkpoint: Checkpoint) -> int:
    """How many the config tells; layers after them predict further tokens."""
    config = checkpoint.config.get("text_config") or checkpoint.config
    return int(config.get("num_hidden_layers") or 1 << 30)


def _attentions(recipe: Recipe, checkpoint: Checkpoint, modules: tuple[Module, ...]) -> tuple[str, ...]:
    """The attention modules of the decoder layers, if the recipe quantizes their cache."""
    if isinstance(recipe.quantize, Gguf) or recipe.quantize.kv_cache is None:
        return ()
    keys = (module.name for module in modules if module.name.endswith((".k_proj", ".qkv_proj", ".query_key_value")))
    layers = _decoder_layers(checkpoint)
    inside = (name for name in keys if not NOT_TEXT.search(name) and layer_number(name) < layers)
    return tuple(sorted({name.rpartition(".")[0] for name in inside}))


Unsuited = Literal["indivisible", "outside", "torn", "unstorable", "nothing"]


class _Decided(Frozen):
    """What becomes of the modules, and what speaks against it."""

    modules: tuple[Module, ...]
    problems: tuple[Problem, ...]
    unsuited: dict[Unsuited, tuple[str, ...]]
    """What other settings may help against."""
    widths: dict[int, set[int]]
    """Number of a rule, or `advice.MAIN` → what its group size has to divide."""
    outside: tuple[str, ...]
    """Modules that are outside of the decoder layers."""
    whole: tuple[str, ...]
    """Patterns for all modules of what is torn."""
    tearing: tuple[str, ...]
    """Patterns of `ignore` that mean some of those …"""
    tearing_rules: tuple[int, ...]
    """… and the numbers of rules that do."""

    @property
    def told(self) -> set[str]:
        """All that speaks against it."""
        return {
            *(problem.what for problem in self.problems),
            *(what for found in self.unsuited.values() for what in found),
        }


def _decide(recipe: Recipe, checkpoint: Checkpoint, anatomy: Anatomy) -> _Decided:
    places, problems = anatomy.places, list[Problem]()
    linear = {t.name.removesuffix(".weight"): t for t in checkpoint.tensors if t.name in places and is_linear(t)}
    head = next((name for name, tensor in linear.items() if places[tensor.name].module == anatomy.head), HEAD)
    names = {*linear, head}  # the head exists in the model, though the checkpoint may hold no tensor for it
    layers = _decoder_layers(checkpoint)
    last = max(
        (layer_number(name) for name in names if not NOT_TEXT.search(name) and layer_number(name) < layers), default=-1
    )
    quantize, asked = recipe.quantize, []
    assert not isinstance(quantize, Gguf)
    for patterns, what in ((quantize.ignore, "ignore"), *((rule.match, "rule") for rule in quantize.rules)):
        hits = {pattern: {name for name in names if _means(pattern, name, head, last)} for pattern in patterns}
        for pattern in (pattern for pattern, found in hits.items() if not found):
            what_is = f"{what} pattern '{pattern}' matches no linear module of {checkpoint.label}"
            problems.append(Problem(f"recipe {recipe.name}", what_is, _spelling(pattern, names, last)))
        asked.append(hits)
    ignored, *ruled = (set[str]().union(*hits.values()) for hits in asked)
    indivisible: dict[tuple[int, int], list[str]] = {}
    widths: dict[int, set[int]] = {}
    modules = []
    tied = head if anatomy.head_is_embedding else None
    for name, tensor in sorted(linear.items()):
        number = next((number for number, hits in enumerate(ruled) if name in hits), advice.MAIN)
        target = quantize if number == advice.MAIN else quantize.rules[number]
        place = places[tensor.name]
        reason = "ignored by the recipe" if name in ignored else _kept(name, tensor, layers, tied)
        reason = reason or _unfit(place, anatomy)
        module = _module(name, tensor, reason, target, recipe, indivisible)
        if not reason and target.group_size:
            widths.setdefault(number, set()).update(_grouped(module.shape, target.scheme))
        modules.append(module.model_copy(update={"address": name if place.kind == "experts" else place.module}))
    modules = _shrunk_together(modules)
    outside = [m.name for m in modules if m.quantized and layer_number(m.name) < 0] if recipe.calibrated else []
    torn = _torn(modules)
    unsuited: dict[Unsuited, list[str]] = {
        "indivisible": [_does_not_divide(*sizes, affected) for sizes, affected in sorted(indivisible.items())],
        "outside": [f"{', '.join(outside)} is {OUTSIDE}"] if outside else [],
        "torn": [f"{next(iter(torn))} are not treated alike ({len(torn)} such groups)"] if torn else [],
    }
    problems += [] if torn else misread(recipe, checkpoint, modules, layers)
    problems += uncomputable(recipe, checkpoint, anatomy)
    problems += _beyond_layers(recipe, modules, anatomy)
    problems += _beyond_engine(recipe, checkpoint, modules)
    stored = {m.name: (m.scheme, m.group_size, m.shape) for m in modules if m.scheme}
    if not indivisible and (why := cannot_hold(recipe.packing, stored)):
        unsuited["unstorable"] = [why]
    if not problems and not any(unsuited.values()) and not stored:
        unsuited["nothing"] = ["has no linear module left to quantize"]
    apart = {module.name for together in torn.values() for module in together}
    return _Decided(
        modules=tuple(modules),
        problems=tuple(problems),
        unsuited={kind: tuple(found) for kind, found in unsuited.items() if found},
        widths=widths,
        outside=tuple(outside),
        whole=_whole(torn),
        tearing=tuple(pattern for pattern, found in asked[0].items() if found & apart),
        tearing_rules=tuple(number for number, found in enumerate(ruled) if found & apart),
    )


OUTSIDE = "outside the decoder layers, which is all that calibrated methods quantize"


def _spelling(pattern: str, names: set[str], last: int) -> str:
    """Say how modules are named, to whom a pattern means none."""
    example = f"modules are named like {min(names)}"
    if pattern.startswith("layer:"):
        return f"its decoder layers are layer:0 to layer:{last}" if last >= 0 else example
    if pattern.startswith("re:"):
        inside = any(re.search(pattern[3:], name) for name in names)
        return f"it is matched from the start of a name: 're:.*{pattern[3:]}'" if inside else example
    return did_you_mean(pattern, {*names, *(name.rpartition(".")[2] for name in names)}) or example


def _does_not_divide(size: int, width: int, affected: list[str]) -> str:
    who = affected[0] if len(affected) == 1 else f"{len(affected)} modules, like {affected[0]}"
    return f"group size {size} does not divide the width {width} of {who}"


def _beyond_layers(recipe: Recipe, modules: list[Module], anatomy: Anatomy) -> list[Problem]:
    """What keeps a calibrated method from taking hidden states from one decoder layer to the next."""
    if not recipe.calibrated or recipe.quantize.engine != "quantgate":
        return []
    found = (LAYER.search(f"{module.address}.") for module in modules if module.quantized)
    stacks = {one.string[: one.end()].rstrip(".").rpartition(".")[0] for one in found if one}
    reasons = sorted({anatomy.trial.bound[stack] for stack in stacks if stack in anatomy.trial.bound})
    what = f"takes a text through one decoder layer after the other, and those of a {anatomy.architecture}"
    return [Problem(f"recipe {recipe.name}", f"{what} {why}", DATA_FREE) for why in reasons]


def _beyond_engine(recipe: Recipe, checkpoint: Checkpoint, modules: list[Module]) -> list[Problem]:
    """What another project's engine would stumble over in the middle of its work."""
    method, why = recipe.quantize, ""
    odd = [module for module in modules if module.quantized and module.shape[0] % CLIPPED_TOGETHER]
    if method.engine == "gptqmodel" and method.method == "awq" and odd:
        why = f"GPTQModel's AWQ clips {CLIPPED_TOGETHER} output features at a time, and"
        why += f" {odd[0].name} has {odd[0].shape[0]}"
    if method.engine in KNOWN_MODELS:
        kind = checkpoint.config.get("model_type")
        left = [m.name for m in modules if not m.quantized and layer_number(m.name) >= 0]
        if kind not in KNOWN_MODELS[method.engine]:
            why = f"{method.engine} is no longer kept and is known to work for {', '.join(KNOWN_MODELS[method.engine])}"
            why += f" here, and {checkpoint.label} is a {kind} model"
        elif left:
            why = f"{method.engine} quantizes every linear module of every layer, and {left[0]} is to be kept"
    problems = [Problem(f"recipe {recipe.name}", why, INSTEAD[method.method])] if why else []
    if method.engine == "auto-gptq" and not getattr(method, "experimental_cpu", False) and not has_cuda():
        what = "auto-gptq quantizes on CUDA only, which this machine has not"
        remedy = "--experimental-cpu replaces two names inside it; recipes gptq-gptqmodel and int4-gptq need no GPU"
        problems.append(Problem(f"recipe {recipe.name}", what, remedy))
    return problems


KNOWN_MODELS: dict[str, tuple[str, ...]] = {
    "auto-gptq": ("llama", "mistral", "gemma"),
    "autoawq": ("llama", "mistral", "qwen2", "qwen3", "gemma"),
}
"""Model types that engines without maintainers were seen to quantize in full."""
INSTEAD = {"gptq": "recipe int4-gptq can", "awq": "recipe int4-awq can"}
CLIPPED_TOGETHER = 64
DATA_FREE = "use a recipe without calibration, like fp8 or int8-weight-only"


def _unfit(place: Place, anatomy: Anatomy) -> str:
    """Why transformers could not take a quantized weight at `place`; empty if it could."""
    if place.kind not in ("linear", "experts"):
        return "is no linear module of its model"
    return "its model reads the weight itself" if place.module in anatomy.trial.unused else ""


def _kept(name: str, tensor: TensorInfo, layers: int, tied: str | None) -> str:
    """Why a module that no pattern speaks of is kept; empty when it is not."""
    if name == tied:
        return "is tied to the embedding"
    if ROUTER.search(name):
        return "routes tokens to experts"
    if NOT_TEXT.search(name):
        return "is not part of the language model"
    if layer_number(name) >= layers:
        return "predicts further tokens (MTP)"
    if len(tensor.shape) != 2:
        return "experts stored as one tensor"
    return "" if tensor.dtype in FLOAT else f"is {tensor.dtype}"


def _loaded_as_one(modules: list[Module]) -> dict[str, list[Module]]:
    """The sets of modules that vLLM loads as one matrix, or as one tensor of all experts, by what to call them."""
    sets: dict[str, list[Module]] = {}
    for module in modules:
        parent, _, last = module.name.rpartition(".")
        for fused in FUSED:
            if last in fused:
                sets.setdefault(f"{', '.join(fused)} of {parent}", []).append(module)
        if experts := EXPERTS.match(module.name):
            sets.setdefault(f"all experts of {experts[1]}", []).append(module)
    return sets


def _shrunk_together(modules: list[Module]) -> list[Module]:
    """`modules`, where those that are loaded as one have the smallest group size that one of them was shrunk to."""
    smallest: dict[str, Module] = {}
    for together in _loaded_as_one(modules).values():
        if len({module.scheme for module in together}) == 1 and together[0].group_size:
            least = min(together, key=lambda module: module.group_size or 0)
            smallest |= {m.name: least for m in together if m.group_size != least.group_size and least.reason}
    changes = {name: {"group_size": least.group_size, "reason": least.reason} for name, least in smallest.items()}
    return [module.model_copy(update=changes.get(module.name)) for module in modules]


def _torn(modules: list[Module]) -> dict[str, list[Module]]:
    """Return those that vLLM loads as one, and that the recipe treats differently: it refuses those."""
    sets = _loaded_as_one(modules)
    return {name: some for name, some in sets.items() if len({(m.scheme, m.group_size) for m in some}) > 1}


def _whole(torn: Mapping[str, list[Module]]) -> tuple[str, ...]:
    """Return patterns for all modules of the sets that are `torn`."""
    names = [module.name for together in torn.values() for module in together]
    if len(torn) > 1:
        names = [name if EXPERTS.match(name) else name.rpartition(".")[2] for name in names]
    return tuple(dict.fromkeys(r"re:.*\.experts\." if EXPERTS.match(name) else name for name in names))


def matches(pattern: str, name: str, last_layer: int) -> bool:
    """Whether `pattern` of a recipe means module `name` of a model whose last decoder layer is `last_layer`."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    if pattern.startswith("layer:"):
        number = int(pattern.removeprefix("layer:"))
        return layer_number(name) == (number if number >= 0 else last_layer + 1 + number)
    return name == pattern or name.endswith(f".{pattern}")


def _means(pattern: str, name: str, head: str, last_layer: int) -> bool:
    """Tell whether `pattern` means module `name`; `lm_head` means the `head`, whatever a model calls it."""
    return matches(pattern, name, last_layer) or (name == head and matches(pattern, HEAD, last_layer))


def layer_number(name: str) -> int:
    """The number of the decoder layer that module `name` is in, -1 if in none."""
    found = LAYER.search(name)
    return int(found[1]) if found else -1


def is_linear(tensor: TensorInfo) -> bool:
    """Tell whether a tensor is, by its name, the weight of what some runtime has as a linear module, or those of all
    experts in one."""
    name = tensor.name.removesuffix(".weight")
    if len(tensor.shape) == 3:
        return EXPERTS.match(name) is not None
    return tensor.name.endswith(".weight") and len(tensor.shape) == 2 and not NOT_LINEAR.search(name)


def _module(
    name: str,
    tensor: TensorInfo,
    kept: str,
    target: Method | Rule,
    recipe: Recipe,
    indivisible: dict[tuple[int, int], list[str]],
) -> Module:
    """What becomes of a module; widths that its group size does not divide are noted in `indivisible`."""
    assert not isinstance(recipe.quantize, Gguf)
    action = recipe.quantize.on_indivisible
    chosen = SCHEMES[target.scheme]
    size = target.group_size or chosen.weights.group_size
    scheme: SchemeName | None = None if kept else target.scheme
    reason = kept
    widths = _grouped(tensor.shape, target.scheme)
    odd = [width for width in widths if size and width % size] if scheme else []
    if odd and size:
        divisor = advice.divisor(widths, size)
        told = f"{size} does not divide {odd[0]}"
        if action == "shrink" and chosen.resizable and divisor >= SMALLEST_GROUP:
            size, reason = divisor, f"group size {divisor}: {told}"
        elif action == "error":
            indivisible.setdefault((size, odd[0]), []).append(name)
        else:
            scheme, reason = None, f"group size {told}"
    return Module(
        name=name,
        address=name,
        shape=tensor.shape,
        dtype=tensor.dtype,
        scheme=scheme,
        group_size=size if scheme else None,
        packing=recipe.packing if scheme else "compressed-tensors",
        scales_input=scheme is not None and _scales_input(name, recipe),
        reason=reason,
        bytes_before=tensor.bytes,
    )


def _grouped(shape: tuple[int, ...], scheme: SchemeName) -> tuple[int, ...]:
    """Return the sides of a weight that a group size divides."""
    return shape if SCHEMES[scheme].is_block else shape[1:]


def _scales_input(name: str, recipe: Recipe) -> bool:
    """Model Optimizer folds AWQ's factors into the norm that several modules read, SmoothQuant's into none."""
    method = recipe.quantize
    if method.engine != "modelopt":
        return False
    reads_norm = any(name.rpartition(".")[2] in fused for fused in FUSED)
    return method.schemes == ("W8A8_STATIC",) or (method.method == "awq" and not reads_norm)


def _needs(plan: Plan, to: Path | None) -> tuple[Need, ...]:
    memory = psutil.virtual_memory().available
    cache, target = _existing(cache_dir()), _existing((to or Path("artifacts")).absolute())
    in_cache, published = plan.bytes_after + _temporary(plan), plan.bytes_after
    disk: dict[str, dict[Part, int]]
    disk = {str(cache): {"cache": in_cache}, str(target): {"artifact": published}}
    if _disk(cache) == _disk(target):
        disk = {str(cache): {"cache": in_cache, "artifact": published}}
    needs = [
        Need(stage=stage, resource="memory", needed=needed, available=memory)
        for stage, needed in expected_memory(plan).items()
    ]
    for where, parts in disk.items():
        needs.append(
            Need(
                stage="quantize and publish",
                resource="disk",
                where=where,
                needed=sum(parts.values()),
                available=shutil.disk_usage(where).free,
                parts=parts,
            )
        )
    return tuple(needs)


def _disk(folder: Path) -> int:
    """Return the number of the disk that a folder is on."""
    return folder.stat().st_dev


def expected_memory(plan: Plan) -> dict[str, int]:
    """Bytes of memory that the expensive stages are expected to take."""
    return {"quantize": _quantize_memory(plan), "evaluate": _evaluate_memory(plan)}


def _temporary(plan: Plan) -> int:
    """Bytes in the cache while a run lasts: the unquantized GGUF; log-probabilities on held-out text; what another
    project's engine wrote, and what is not repacked yet."""
    vocabulary = int(plan.checkpoint.config.get("vocab_size") or 32000)
    if not plan.tensors:
        recipe = plan.recipe
        copies = (recipe.quantize.engine in environments.names()) + (recipe.packing != recipe.engine_packing)
        return copies * plan.bytes_after + DISTANCE_CHUNKS * DISTANCE_CONTEXT // 2 * vocabulary * 2
    return 2 * plan.checkpoint.parameters + DIVERGENCE_CHUNKS * DIVERGENCE_CONTEXT // 2 * vocabulary * 2


def _quantize_memory(plan: Plan) -> int:
    recipe, config = plan.recipe, plan.checkpoint.config
    if plan.tensors:  # llama.cpp goes tensor by tensor; an importance matrix needs the model
        model = int(1.2 * model_bytes(plan.checkpoint, plan.dtype)) if recipe.calibrate else 0
        return STREAM_BYTES + model + 8 * max(tensor.elements for tensor in plan.tensors)
    if not recipe.calibrate:
        return STREAM_BYTES
    if recipe.quantize.engine != "quantgate":  # the engine holds the model, what it becomes, and its statistics
        return 2 * LIBRARIES_BYTES + 3 * plan.bytes_before
    hidden = int((config.get("text_config") or config).get("hidden_size") or 4096)
    tokens = recipe.calibrate.samples * recipe.calibrate.seq_len
    activations = 2 * tokens * hidden * SIZES[plan.dtype]  # what goes into a layer, and what comes out
    largest = max((math.prod(module.shape) for module in plan.modules), default=0) * 4
    return LIBRARIES_BYTES + int(1.2 * plan.bytes_before) + activations + _moments(plan) + 8 * largest


def _moments(plan: Plan) -> int:
    """Bytes of the second moments of all distinct inputs of the layer that has most, in float32."""
    layers: dict[int, dict[str, int]] = {}
    for module in plan.quantized.values():
        parent, _, last = module.name.rpartition(".")
        fused = any(last in names for names in FUSED)
        experts = EXPERTS.match(module.name)
        reads = (experts[1] if experts else parent) if fused else module.name
        layers.setdefault(layer_number(module.name), {})[reads] = module.shape[1] ** 2 * 4
    return max((sum(inputs.values()) for inputs in layers.values()), default=0)


def _evaluate_memory(plan: Plan) -> int:
    vocabulary = int(plan.checkpoint.config.get("vocab_size") or 32000)
    logits = min(EVALUATION_BATCH_TOKENS * vocabulary * 4, EVALUATION_LOGITS_BYTES)
    models = 2 if fits(plan.checkpoint, plan.dtype, models=2) else 1  # baseline and artifact, in turn
    return LIBRARIES_BYTES + int(1.2 * models * model_bytes(plan.checkpoint, plan.dtype)) + logits


def _existing(path: Path) -> Path:
    """The nearest folder above `path` that exists: where its disk space comes from."""
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
