"""Advice on a recipe that does not suit a model; nothing is advised that was not tried.

A remedy is given as options of the command line, so that it can be applied as it stands.
"""

import json
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from pipelines.formats.schemes import SMALLEST_GROUP
from pipelines.recipe.load import load_recipe
from pipelines.recipe.recipe import Recipe

Settings = Mapping[str, Any]
"""Settings of a recipe: key, with dots between its parts → value."""
Suits = Callable[[Recipe], bool]
"""Function that tells whether a recipe suits the model."""
UNGROUPED = ("fp8", "int8-weight-only")
"""Recipes without data that divide no width into groups."""
NONE = "no recipe here can quantize it: give another model"
MAIN = -1
"""Number of the recipe's own scheme among its rules, which are counted from 0."""


def changed(recipe: Recipe, settings: Settings) -> Recipe | None:
    """Return `recipe` with `settings`; None where that is no valid recipe."""
    data = recipe.model_dump(mode="json")
    for key, value in settings.items():
        *above, last = key.split(".")
        inner = data
        for part in above:
            inner = inner[part]
        inner[last] = value
    try:
        return Recipe.model_validate_json(json.dumps(data), strict=True)
    except ValidationError:
        return None


def as_options(settings: Settings) -> str:
    """Return the options that make `settings`, as a shell takes them."""
    return " ".join(f"--set {shlex.quote(f'{key}={_value(value)}')}" for key, value in settings.items())


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def helpful(recipe: Recipe, tries: Iterable[Settings], suits: Suits) -> list[str]:
    """Return those of the `tries` that make the recipe suit the model, each as options of the command line."""
    made = ((settings, changed(recipe, settings)) for settings in tries)
    return list(dict.fromkeys(as_options(settings) for settings, other in made if other and suits(other)))


def instead(suits: Suits) -> str:
    """Name the recipes that suit where none of the recipe's own settings does."""
    others = [name for name in UNGROUPED if suits(load_recipe(name))]
    return f"use recipe {' or '.join(others)} as it comes" if others else NONE


def regrouped(recipe: Recipe, widths: Mapping[int, set[int]]) -> Iterator[Settings]:
    """Yield group sizes for a recipe whose targets (number of a rule, or `MAIN`) are to divide these `widths`: one for
    each that does not; then one for all."""
    targets = {MAIN: recipe.method, **dict(enumerate(recipe.method.rules))}
    sized = {number: target for number, target in targets.items() if number in widths and target.group_size}
    own = {n: divisor(widths[n], target.group_size or 0) for n, target in sized.items()}
    every = min(own.values(), default=0)
    for sizes in (own, dict.fromkeys(own, every)):
        new = {n: size for n, size in sizes.items() if size != targets[n].group_size}
        if new and min(new.values()) >= SMALLEST_GROUP:
            yield _resized(recipe, new)


def _resized(recipe: Recipe, sizes: Mapping[int, int]) -> Settings:
    """Return the settings that give targets other group sizes."""
    settings: dict[str, Any] = {"quantize.group_size": sizes[MAIN]} if MAIN in sizes else {}
    if {*sizes} - {MAIN}:
        rules = [rule.model_dump(mode="json", exclude_none=True) for rule in recipe.method.rules]
        settings["quantize.rules"] = [
            {**rule, "group_size": sizes[number]} if number in sizes else rule for number, rule in enumerate(rules)
        ]
    return settings


def widened(recipe: Recipe, numbers: Iterable[int], patterns: Iterable[str]) -> Iterator[Settings]:
    """Yield rules of which one, with each of these `numbers`, matches `patterns` as well; then rules without it."""
    rules = [rule.model_dump(mode="json", exclude_none=True) for rule in recipe.method.rules]
    for number in numbers:
        wider = {**rules[number], "match": [*dict.fromkeys((*rules[number]["match"], *patterns))]}
        yield {"quantize.rules": [*rules[:number], wider, *rules[number + 1 :]]}
        yield {"quantize.rules": [*rules[:number], *rules[number + 1 :]]}


def divisor(widths: Iterable[int], group_size: int) -> int:
    """Return the largest power of two, not above `group_size`, that divides all `widths`."""
    return math.gcd(*widths, 1 << (group_size.bit_length() - 1))
