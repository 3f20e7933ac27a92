"""The time that a run will take on this machine: by finished runs, else by a probe of it, else a guess, called so.

The probe multiplies matrices as wide as the model's for half a second, in the type that the model will compute in. What
it found is kept for the machine, so that a plan is asked for it once. What is finished already takes no time.
"""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.names import EXPERTS
from pipelines.core import progress
from pipelines.core.cache import Result, keep
from pipelines.core.device import processor
from pipelines.core.strict_yaml import Frozen
from pipelines.core.text import roughly
from pipelines.evaluation.stage import Share
from pipelines.planning.plan import CheckpointPlan, GgufPlan, Plan
from pipelines.recipe.load import load_task, task_documents
from pipelines.recipe.suite import Suite
from pipelines.reporting.history import seconds_of_runs
from pipelines.runtimes.amounts import DISTANCE_CHUNKS, DISTANCE_CONTEXT
from pipelines.verification import reader

Basis = Literal["finished runs", "a probe of this machine", "a guess", "kept results"]

PROBE_SECONDS = 0.5
PROBE_ROWS = 512
EFFICIENCY = 0.9
"""Share of the probe's rate that a whole evaluation reaches: attention, norms and short batches take the rest."""
START = 8.0
"""Seconds that loading libraries and a model takes beside what grows with the model."""
ROUNDING_RATE = 100e6
"""Weights that are read, rounded and written, or compared with the source by verification, in a second."""
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
)
"""Environment variables that change how fast matrix products are."""
OUTSIDE = re.compile(r"(^|[._])(lm_head|embed\w*|wte|wpe)(\.|$)")
"""Pattern of the names of tensors that belong to no layer: the embedding and the head."""
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Keys under which configs hold the number of a layer's experts."""
DOCUMENTS, TOKENS = 1000, 100
"""Numbers of documents, and of tokens in each, to assume of a task of which nothing is known."""
TASKS_START = 3.0
"""Seconds for each task that lm-eval loads."""


class Expected(Frozen):
    """The time that a stage is expected to take now."""

    stage: str
    seconds: float
    """Seconds of what is left of the stage."""
    basis: Basis
    documents_kept: int = 0
    """Number of answers, of baseline and artifact together, that an evaluation finds finished."""

    @property
    def done(self) -> bool:
        """Whether a run finds all that it needs of the stage finished."""
        return self.basis == "kept results"

    @property
    def left(self) -> str:
        """Text on the time left: `done`, `11 min`, or `11 min for what is left (1,200 answers are kept)`."""
        if self.done:
            return "done"
        kept = f" for what is left ({self.documents_kept:,} answers are kept)" if self.documents_kept else ""
        return f"{roughly(self.seconds)}{kept}"


class Finished(Frozen):
    """The work that a run finds finished (`pipelines.flow.forecast.finished_work`)."""

    stages: tuple[str, ...] = ()
    """Stages, among those that `expected_times` tells of, that have nothing left to do."""
    baseline: Share = Field(default=Share())
    artifact: Share = Field(default=Share())
    """Finished shares of both evaluations; empty where `stages` has `evaluate`."""


def expected_times(
    plan: Plan, suite: Suite, runtime: str, device: str, finished: Finished | None = None
) -> tuple[Expected, ...]:
    """Return the seconds to expect for each expensive stage of a run: `quantize`, `verify` and `evaluate`, which is of
    baseline and artifact with all documents. What is `finished` takes none."""
    finished = finished or Finished()
    sides = {"baseline": finished.baseline, "artifact": finished.artifact}
    seen = seconds_of_runs(plan, suite, runtime, device)
    if {f"evaluate {side}" for side in sides} <= seen.keys():  # a run may have stopped early: its kept time counts
        seen["evaluate"] = sum(max(0.0, seen[f"evaluate {side}"] - share.seconds) for side, share in sides.items())
    guessed = runtime != "transformers"  # whose products the probe does not run
    found: list[Expected] = []
    for stage, operations, more, is_guess in (
        ("quantize", _quantize_operations(plan), _quantize_seconds(plan), _other_engine(plan)),
        ("verify", _verify_operations(plan), _verify_seconds(plan), False),
        ("evaluate", *_evaluate_operations(plan, suite, finished), guessed or not _known(suite)),
    ):
        if stage in finished.stages:
            found.append(Expected(stage=stage, seconds=0.0, basis="kept results"))
            continue
        kept = sum(sum(share.documents.values()) for share in sides.values()) if stage == "evaluate" else 0
        if stage in seen:
            found.append(Expected(stage=stage, seconds=seen[stage], basis="finished runs", documents_kept=kept))
            continue
        basis: Basis = "a guess" if is_guess else "a probe of this machine"
        seconds = more + operations / (product_rate(plan, device) * EFFICIENCY)
        found.append(Expected(stage=stage, seconds=seconds, basis=basis, documents_kept=kept))
    return tuple(found)


def in_all(times: Sequence[Expected]) -> str:
    """Return `about 11 min in all`; what is finished is no part of it."""
    if all(one.done for one in times):
        return "nothing that takes long is left"
    return f"about {roughly(sum(one.seconds for one in times))} in all"


def _quantize_seconds(plan: Plan) -> float:
    """Return the seconds that quantizing takes beside the operations of calibrating."""
    return (START if plan.recipe.calibrate else 0.0) + plan.quantized_weights / ROUNDING_RATE


def _other_engine(plan: Plan) -> bool:
    return plan.recipe.engine != "quantgate"


def _known(suite: Suite) -> bool:
    """Tell whether the suite's files say how much there is to read, and nothing is to be written."""
    tasks = [load_task(task.task) for task in suite.tasks]
    return all(task.documents and task.tokens and task.filter is None for task in tasks)


def _token_operations(checkpoint: Checkpoint) -> tuple[float, float]:
    """Return the operations for a token: of the layers (in a mixture, of the experts it goes to), and of the head."""
    config = checkpoint.config.get("text_config") or checkpoint.config
    experts = next((int(config[key]) for key in EXPERT_COUNTS if config.get(key)), 1)
    share = (config.get("num_experts_per_tok") or experts) / max(1, experts)
    body = sum(
        tensor.elements * (share if EXPERTS.match(tensor.name) else 1.0)
        for tensor in checkpoint.tensors
        if tensor.name.endswith(".weight") and len(tensor.shape) > 1 and not OUTSIDE.search(tensor.name)
    )
    return 2.0 * body, 2.0 * int(config.get("vocab_size") or 32000) * int(config.get("hidden_size") or 4096)


def _verify_operations(plan: Plan) -> float:
    body, head = _token_operations(plan.checkpoint)
    read = 2 * reader.TOKENS if _is_read(plan) else 0  # as the reader does by itself, and with the evaluation's numbers
    return (2 * DISTANCE_CHUNKS * DISTANCE_CONTEXT + read) * (body + head / 2)


def _verify_seconds(plan: Plan) -> float:
    """Return the seconds that verifying takes beside its operations: each model is loaded, and all weights are read."""
    return (3 if _is_read(plan) else 2) * START + plan.quantized_weights / ROUNDING_RATE


def _is_read(plan: Plan) -> bool:
    """Tell whether a reader of its own is going to load the artifact, in a process of its own."""
    return isinstance(plan, CheckpointPlan) and reader.is_here(plan.recipe)


def _evaluate_operations(plan: Plan, suite: Suite, finished: Finished) -> tuple[float, float]:
    """Return the operations of evaluating what is left of both models in full, and the seconds beside them."""
    body, head = _token_operations(plan.checkpoint)
    sides = [_tokens_left(suite, share) for share in (finished.baseline, finished.artifact)]
    starts = sum(tokens > 0 for tokens in sides)
    return sum(sides) * (body + head / 4), starts * (START + TASKS_START * len(suite.tasks))


def _tokens_left(suite: Suite, share: Share) -> float:
    """Return the number of tokens in the documents that are not evaluated yet."""
    tokens = 0.0
    for wanted in suite.tasks:
        task = load_task(wanted.task)
        left = max(0, (task_documents(wanted) or DOCUMENTS) - share.documents.get(wanted.task, 0))
        tokens += left * (task.tokens or TOKENS) * (1 + wanted.shots) * wanted.seeds
    return tokens


def _quantize_operations(plan: Plan) -> float:
    """Return the operations of calibrating: two passes of the tokens, second moments of inputs, solving for weights."""
    if not plan.recipe.calibrate:
        return 0.0
    body, _ = _token_operations(plan.checkpoint)
    tokens = plan.recipe.calibrate.samples * plan.recipe.calibrate.seq_len
    if isinstance(plan, GgufPlan) or plan.recipe.quantize.method == "rtn":
        return tokens * body
    shapes = [module.shape for module in plan.quantized.values()]
    moments = sum(2.0 * tokens * columns**2 for _, columns in shapes) / 2  # several modules read one input
    tries = 42 if plan.recipe.quantize.method == "awq" else 4
    return 2 * tokens * body + moments + sum(tries * rows * columns**2 for rows, columns in shapes)


class _Rate(Result):
    """The speed of a machine, as the probe measured it."""

    operations: float
    """Operations a second of float32 or 16-bit matrix products."""


def product_rate(plan: Plan, device: str) -> float:
    """Return the operations a second of matrix products of the model's width, on this machine as it is now set up."""
    config = plan.checkpoint.config.get("text_config") or plan.checkpoint.config
    width = min(4096, int(config.get("hidden_size") or 1024))
    inputs = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "variables": {name: os.environ.get(name) for name in VARIABLES},
        "device": device,
        "dtype": plan.dtype,
        "width": width,
    }

    def make(_: Path) -> dict[str, float]:
        with progress.status("measuring how fast this machine computes (a second or two, once) …"):
            return {"operations": probe(width, plan.dtype, device)}

    return keep("probe", inputs, _Rate, make).operations


def probe(width: int, dtype: str, device: str) -> float:
    """Return the measured operations a second of products (rows, width) x (width, 3 width) in `dtype` on `device`."""
    import torch

    x = torch.randn(PROBE_ROWS, width, device=device).to(getattr(torch, dtype))
    weight = torch.randn(3 * width, width, device=device).to(getattr(torch, dtype))

    def product() -> None:
        torch.nn.functional.linear(x, weight)
        if device != "cpu":
            torch.cuda.synchronize(torch.device(device))

    product()
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < PROBE_SECONDS or count < 2:
        product()
        count += 1
    return 2.0 * PROBE_ROWS * 3 * width * width * count / passed
