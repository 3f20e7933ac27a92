"""`quantgate plan`: what a run would do and cost."""

from typing import TYPE_CHECKING

import click

from pipelines.cli.options import device_option, dtype_option, json_option, model_option, override_options
from pipelines.cli.output import announce_planning, print_json

if TYPE_CHECKING:
    from pipelines.core.device import Dtype


@click.command("plan")
@click.argument("recipe")
@model_option
@override_options
@device_option
@dtype_option
@json_option
def plan(
    recipe: str, model: str | None, overrides: tuple[str, ...], device: str | None, dtype: "Dtype", as_json: bool
) -> None:
    """Say what RECIPE would do to a model and what it would cost; reads no weights."""
    from pipelines.cli.tables.plan import show_plan
    from pipelines.core.device import choose_device, default_device
    from pipelines.flow.forecast import forecast_plan
    from pipelines.gating.power import analyze_recipe_power
    from pipelines.planning.stage import make_plan
    from pipelines.recipe.load import load_recipe, load_suite
    from pipelines.reporting.history import changes

    device = choose_device(device) if device else default_device()
    chosen = load_recipe(recipe, overrides)
    announce_planning([chosen.name], model)
    made = make_plan(chosen, model, device=device, dtype=dtype)
    suite = load_suite(made.recipe.gate.suite)
    seen = analyze_recipe_power(made.recipe, suite, changes(made.recipe))
    times = forecast_plan(made, suite, device, dtype)
    if not as_json:
        return show_plan(made, seen, times)
    totals = {
        "bytes_before": made.bytes_before,
        "bytes_after": made.bytes_after,
        "bits_per_weight": made.bits_per_weight,
        "expected_times": [expected.model_dump() for expected in times],
    }
    parts: dict[str, list[object]] = {"modules": [], "attentions": [], "tensors": []}  # of the other kind of plan
    print_json({**parts, **made.model_dump(mode="json"), **totals, "sight": seen.model_dump() if seen else None})
