"""The linear modules of a checkpoint, and which of them the patterns of a recipe mean."""

import re
from collections.abc import Iterable

from pipelines.checkpoint.headers import Checkpoint, TensorInfo
from pipelines.checkpoint.names import HEAD, NOT_TEXT, is_linear, layer_number, matches
from pipelines.core.errors import Problem, did_you_mean
from pipelines.core.strict_yaml import Frozen
from pipelines.planning.anatomy import Anatomy
from pipelines.recipe.recipe import Recipe


class LinearModules(Frozen):
    """The linear modules of a checkpoint, by the names that the checkpoint has for them."""

    weights: dict[str, TensorInfo]
    """Name of a module → its weight; all experts of a layer, where they are one tensor, are one module."""
    head: str
    """Module that makes logits; the checkpoint holds no weight for it where it is tied to the embedding."""
    layers: int
    """Number of decoder layers that the config names; layers after them predict further tokens."""
    last_layer: int
    """Number of the last decoder layer that has a linear module; -1 if none has."""

    @property
    def names(self) -> set[str]:
        """Names that a pattern can mean: those of all modules, and the head's."""
        return {*self.weights, self.head}


class Matches(Frozen):
    """The modules that each pattern of a recipe means."""

    ignored: dict[str, frozenset[str]]
    """Pattern of `ignore` → names of the modules that it means."""
    ruled: tuple[frozenset[str], ...]
    """Names of modules that each rule means, in the recipe's order."""
    problems: tuple[Problem, ...]
    """Patterns that mean no module."""


def linear_modules(checkpoint: Checkpoint, anatomy: Anatomy) -> LinearModules:
    """Return the linear modules of `checkpoint` that its model has."""
    places = anatomy.places
    weights = {t.name.removesuffix(".weight"): t for t in checkpoint.tensors if t.name in places and is_linear(t)}
    head = next((name for name, tensor in weights.items() if places[tensor.name].module == anatomy.head), HEAD)
    layers = decoder_layers(checkpoint)
    numbers = (layer_number(name) for name in weights if not NOT_TEXT.search(name))
    last = max((number for number in numbers if number < layers), default=-1)
    return LinearModules(weights=weights, head=head, layers=layers, last_layer=last)


def decoder_layers(checkpoint: Checkpoint) -> int:
    """Return the number of decoder layers that the config names; more than any model has where it names none."""
    config = checkpoint.config.get("text_config") or checkpoint.config
    return int(config.get("num_hidden_layers") or 1 << 30)


def match_patterns(recipe: Recipe, modules: LinearModules, label: str) -> Matches:
    """Return which of `modules` the patterns of `recipe` mean; `label` names the checkpoint in problems."""
    method = recipe.method
    ignored = _hits(method.ignore, modules)
    ruled = [_hits(rule.match, modules) for rule in method.rules]
    problems = []
    for what, hits in (("ignore", ignored), *(("rule", hits) for hits in ruled)):
        for pattern in (pattern for pattern, names in hits.items() if not names):
            said = f"{what} pattern '{pattern}' matches no linear module of {label}"
            problems.append(Problem(f"recipe {recipe.name}", said, _spelling(pattern, modules)))
    meant = tuple(frozenset[str]().union(*hits.values()) for hits in ruled)
    return Matches(ignored=ignored, ruled=meant, problems=tuple(problems))


def _hits(patterns: Iterable[str], modules: LinearModules) -> dict[str, frozenset[str]]:
    """Return the names of modules that each pattern means."""
    return {
        pattern: frozenset(name for name in modules.names if _means(pattern, name, modules)) for pattern in patterns
    }


def _means(pattern: str, name: str, modules: LinearModules) -> bool:
    """Tell whether `pattern` means module `name`; `lm_head` means the head, whatever a model calls it."""
    is_head = name == modules.head
    return matches(pattern, name, modules.last_layer) or (is_head and matches(pattern, HEAD, modules.last_layer))


def _spelling(pattern: str, modules: LinearModules) -> str:
    """Return how modules are named, as the remedy for a pattern that means none."""
    names, last = modules.names, modules.last_layer
    example = f"modules are named like {min(names)}"
    if pattern.startswith("layer:"):
        return f"its decoder layers are layer:0 to layer:{last}" if last >= 0 else example
    if pattern.startswith("re:"):
        inside = any(re.search(pattern[3:], name) for name in names)
        return f"it is matched from the start of a name: 're:.*{pattern[3:]}'" if inside else example
    return did_you_mean(pattern, {*names, *(name.rpartition(".")[2] for name in names)}) or example
