"""The retention to expect of a recipe on a model: from finished runs, else as the recipe's summary has it."""

import statistics
from typing import Literal

from pipelines.checkpoint.headers import Checkpoint
from pipelines.core.strict_yaml import Frozen
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.history import Outcome, outcomes

Size = Literal["below 1B parameters", "of 1B to 7B parameters", "above 7B parameters"]
Range = tuple[float, float]
SUMMARIES: dict[str, tuple[Range | None, Range | None]] = {
    "awq-autoawq": ((0.85, 0.95), (0.98, 0.995)),
    "awq-gptqmodel": ((0.85, 0.95), (0.98, 0.995)),
    "bnb-nf4": ((0.85, 0.95), (0.97, 0.99)),
    "fp8": ((0.985, 1.0), (0.985, 1.0)),
    "fp8-block": ((0.985, 1.0), (0.985, 1.0)),
    "fp8-kv": ((0.98, 1.0), (0.98, 1.0)),
    "fp8-modelopt": ((0.96, 0.99), (0.99, 1.0)),
    "fp8-static": ((0.97, 1.0), (0.97, 1.0)),
    "gguf-iq2_m": (None, None),
    "gguf-iq3_m": ((0.0, 0.95), None),
    "gguf-iq4_xs": ((0.90, 0.97), (0.98, 0.995)),
    "gguf-q4_0": ((0.88, 0.96), (0.97, 0.99)),
    "gguf-q4_k_m": ((0.93, 0.98), (0.98, 0.995)),
    "gguf-q5_k_m": ((0.97, 0.995), (0.99, 1.0)),
    "gguf-q6_k": ((0.99, 1.0), (0.99, 1.0)),
    "gguf-q8_0": ((0.99, 1.0), (0.99, 1.0)),
    "gptq-autogptq": ((0.80, 0.95), None),
    "gptq-gptqmodel": ((0.80, 0.95), (0.98, 0.995)),
    "int4-awq": ((0.90, 0.97), (0.98, 0.995)),
    "int4-awq-modelopt": ((0.80, 0.93), (0.98, 0.995)),
    "int4-gptq": ((0.85, 0.95), (0.98, 0.995)),
    "int4-int8-mixed": ((0.85, 0.97), (0.985, 0.995)),
    "int8": ((0.97, 0.99), (0.99, 1.0)),
    "int8-sq-modelopt": ((0.92, 0.98), (0.99, 1.0)),
    "int8-weight-only": ((0.98, 1.0), (0.98, 1.0)),
    "mxfp4": ((0.60, 0.85), (0.90, 0.97)),
    "nvfp4": ((0.85, 0.95), (0.97, 0.99)),
    "nvfp4-modelopt": ((0.75, 0.90), (0.97, 0.99)),
    "nvfp4-weight-only": ((0.95, 0.985), (0.985, 0.995)),
    "w4a8": (None, (0.97, 0.995)),
}
"""Recipe → what its summary says of models below 1B and above 7B parameters; None where it says nothing."""


class Expected(Frozen):
    """The retention to expect of a recipe."""

    low: float | None = None
    high: float | None = None
    """Highest retention to expect; None where nothing is known."""
    basis: str
    """What it is known by, to follow "by"."""
    tried: tuple[Outcome, ...] = ()
    """Finished runs on this model."""

    def may_keep(self, share: float) -> bool | None:
        """Tell whether so large a `share` of the baseline may be kept; None where nothing is known."""
        return None if self.high is None else self.high >= share


def expected(recipe: Recipe, checkpoint: Checkpoint) -> Expected:
    """Return what to expect of `recipe` on `checkpoint`: as in finished runs on it, else on models of its size, else as
    the summary says."""
    seen, size = outcomes(recipe), size_of(checkpoint.parameters)
    own = tuple(one for one in seen if (one.model, one.parameters) == (checkpoint.label, checkpoint.parameters))
    if kept := [one.retention for one in own if one.retention is not None]:
        return Expected(low=min(kept), high=max(kept), basis=f"{_runs(own)} here", tried=own)
    alike = tuple(one for one in seen if size_of(one.parameters) == size and one not in own)
    if kept := [one.retention for one in alike if one.retention is not None]:
        middle = statistics.median(kept)
        names = ", ".join(sorted({one.model for one in alike}))
        basis = f"{_runs(alike)} on other models {size}: {names}"
        return Expected(low=middle, high=middle, basis=basis, tried=own)
    low, high = _summary(recipe.name, size)
    return Expected(low=low, high=high, basis=f"its summary, for models {size}", tried=own)


def size_of(parameters: int) -> Size:
    """Return the class of models that one of so many `parameters` is in, by the words of the recipes' summaries."""
    if parameters < 1e9:
        return "below 1B parameters"
    return "of 1B to 7B parameters" if parameters < 7e9 else "above 7B parameters"


def _summary(name: str, size: Size) -> tuple[float | None, float | None]:
    small, large = SUMMARIES.get(name, (None, None))
    match size:
        case "below 1B parameters":
            return small or (None, None)
        case "above 7B parameters":
            return large or (None, None)
        case _:  # between what is said of both
            return (small[0], large[1]) if small and large else (None, None)


def _runs(found: tuple[Outcome, ...]) -> str:
    return "1 run" if len(found) == 1 else f"{len(found)} runs"
