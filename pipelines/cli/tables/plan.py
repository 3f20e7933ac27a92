"""A plan: what becomes of each module, what it costs and how long it takes."""

import re
from collections import defaultdict
from collections.abc import Sequence

from pipelines.checkpoint.dtypes import fits
from pipelines.cli.columns import Column, console, show_table
from pipelines.core.text import size
from pipelines.flow.estimate import Expected, in_all
from pipelines.gating.power import PowerAnalysis
from pipelines.planning.gguf import GgufTensor
from pipelines.planning.plan import CheckpointPlan, GgufPlan, Module, Plan
from pipelines.reporting.serving import answers_line


def show_plan(plan: Plan, seen: PowerAnalysis | None, times: Sequence[Expected]) -> None:
    """Print each kind of module and what becomes of it, then size, needs and time."""
    out = console()
    columns = (
        Column("tensors" if isinstance(plan, GgufPlan) else "modules", text=True),
        Column("count"),
        Column("shape"),
        Column("becomes", text=True),
        Column("why", text=True),
    )
    grouped = _grouped(plan).items()
    rows = [(pattern, str(count), shape, becomes, why) for (pattern, shape, becomes, why), count in grouped]
    show_table(f"{plan.recipe.name} on {plan.checkpoint.label}", columns, rows)
    before = plan.bytes_before * 8 / plan.checkpoint.parameters
    out.print(f"weights: {size(plan.bytes_before)} → {size(plan.bytes_after)}, bits per weight {before:.2f} → ", end="")
    out.print(f"{plan.bits_per_weight:.2f}")
    if isinstance(plan, CheckpointPlan) and plan.attentions:
        out.print(f"keys and values of {len(plan.attentions)} attention modules are cached in FP8")
    if isinstance(plan, CheckpointPlan):
        out.print(f"loaded by, at best: {answers_line(plan.recipe.packing, plan.formats)}")
    for need in plan.needs:
        out.print(
            f"{need.stage}: about {size(need.needed)} of {need.resource}, {size(need.available)} free {need.where}"
        )
    narrow = ", because float32 would not fit this machine's memory" if _is_narrow(plan) else ""
    out.print(f"models compute in {plan.dtype}{narrow}")
    for line in time_lines(times):
        out.print(line)
    if plan.checkpoint.left_behind:
        out.print(f"not copied into the artifact: {', '.join(plan.checkpoint.left_behind)}")
    for note in plan.checkpoint.notes:
        out.print(note)
    if seen:
        out.print(seen.sentence(plan.recipe.gate.suite))


def time_lines(times: Sequence[Expected]) -> list[str]:
    """Return lines that say how long each stage will take and by what that is known, what is finished, and the sum."""
    lines = []
    for basis in dict.fromkeys(one.basis for one in times):
        if basis == "kept results":
            lines.append(f"finished already: {', '.join(one.stage for one in times if one.done)}")
        else:
            said = [f"{one.stage} {one.left}" for one in times if one.basis == basis]
            lines.append(f"expected time, by {basis}: {', '.join(said)}")
    return [*lines, f"a run now: {in_all(times)}"]


def _is_narrow(plan: Plan) -> bool:
    """Tell whether the type was chosen for want of memory."""
    return plan.dtype != "float32" and not fits(plan.checkpoint, "float32")


def _grouped(plan: Plan) -> dict[tuple[str, str, str, str], int]:
    counts: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for part in plan.parts:
        pattern = re.sub(r"\.\d+\.", ".*.", part.name)
        becomes = part.type if isinstance(part, GgufTensor) else _becomes(part)
        counts[(pattern, "×".join(map(str, part.shape)), becomes, part.reason)] += 1
    return counts


def _becomes(module: Module) -> str:
    if module.scheme is None:
        return f"kept ({module.dtype})"
    group = f", group {module.group_size}" if module.group_size else ""
    return f"{module.scheme}{group}"
