"""Recipes as the YAML that a file would hold."""

from typing import Any

import yaml

from pipelines.recipe.recipe import Recipe


def as_yaml(recipe: Recipe) -> str:
    """What a file with this recipe would hold."""
    values = recipe.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    kept: dict[str, Any] = {"version": recipe.version, "name": recipe.name, **values}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=110)
