"""Plans of a kind that a test knows: `make_plan` returns either."""

from typing import Any

from pipelines.planning import stage
from pipelines.planning.plan import CheckpointPlan, GgufPlan


def plan_checkpoint(*arguments: Any, **options: Any) -> CheckpointPlan:
    """Return the plan of a recipe that makes a checkpoint; takes what `make_plan` takes."""
    plan = stage.make_plan(*arguments, **options)
    assert isinstance(plan, CheckpointPlan)
    return plan


def plan_gguf(*arguments: Any, **options: Any) -> GgufPlan:
    """Return the plan of a recipe that makes a GGUF; takes what `make_plan` takes."""
    plan = stage.make_plan(*arguments, **options)
    assert isinstance(plan, GgufPlan)
    return plan
