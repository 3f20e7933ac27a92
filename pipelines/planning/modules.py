"""What a recipe makes of each linear module of a checkpoint, and what speaks against it."""

import re
from collections.abc import Iterator, Mapping
from typing import Literal

from pipelines.checkpoint.headers import FLOAT, Checkpoint, TensorInfo
from pipelines.checkpoint.names import EXPERTS, HEAD, NOT_TEXT, ROUTER, fused_set, is_linear, layer_number, matches
from pipelines.core.errors import Problem, did_you_mean
from pipelines.core.strict_yaml import Frozen
from pipelines.formats.packings import cannot_hold
from pipelines.formats.schemes import SCHEMES, SMALLEST_GROUP, SchemeName
from pipelines.planning.anatomy import Anatomy, Place
from pipelines.planning.engines import beyond_engine, beyond_layers, scales_input
from pipelines.planning.plan import Module
from pipelines.planning.readers import misread, uncomputable
from pipelines.recipe import advice
from pipelines.recipe.recipe import Gguf, Method, Recipe, Rule


def plan_modules(
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
    problems += beyond_layers(recipe, modules, anatomy)
    problems += beyond_engine(recipe, checkpoint, modules)
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
        if fused := fused_set(module.name):
            sets.setdefault(f"{', '.join(fused)} of {module.name.rpartition('.')[0]}", []).append(module)
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


def _means(pattern: str, name: str, head: str, last_layer: int) -> bool:
    """Tell whether `pattern` means module `name`; `lm_head` means the `head`, whatever a model calls it."""
    return matches(pattern, name, last_layer) or (name == head and matches(pattern, HEAD, last_layer))


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
        scales_input=scheme is not None and scales_input(name, recipe),
        reason=reason,
        bytes_before=tensor.bytes,
    )


def _grouped(shape: tuple[int, ...], scheme: SchemeName) -> tuple[int, ...]:
    """Return the sides of a weight that a group size divides."""
    return shape if SCHEMES[scheme].is_block else shape[1:]
