"""How long a run will take on this machine: by finished runs, else by a probe of it, else by a guess that is named one.

The probe multiplies matrices as wide as the model's for half a second, in the type that the model will compute in. What
it found is kept for the machine, so that a plan is asked for it once.
"""

import math
import os
import re
import time
from typing import Literal

from pipelines.checkpoint import Checkpoint
from pipelines.device import processor
from pipelines.history import seconds_of_runs
from pipelines.plan import DISTANCE_CHUNKS, DISTANCE_CONTEXT, EXPERTS, Plan
from pipelines.recipe import Suite, load_task, task_documents
from pipelines.schema import Frozen
from pipelines.store import Result, keep

Basis = Literal["finished runs", "a probe of this machine", "a guess"]

PROBE_SECONDS = 0.5
PROBE_ROWS = 512
EFFICIENCY = 0.9
"""What a whole evaluation reaches of the probe's rate: attention, norms and short batches take the rest."""
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
"""Of the environment, that change how fast products are."""
OUTSIDE = re.compile(r"(^|[._])(lm_head|embed\w*|wte|wpe)(\.|$)")
"""Tensors that are no layer's: of the embedding and the head."""
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""What configs call the number of a layer's experts."""
DOCUMENTS, TOKENS = 1000, 100
"""Of a task of which nothing is known."""
TASKS_START = 3.0
"""Seconds for each task that lm-eval loads."""


class Expected(Frozen):
    """How long a stage is expected to take."""

    stage: str
    seconds: float
    basis: Basis


def expected_times(plan: Plan, suite: Suite, runtime: str, device: str) -> tuple[Expected, ...]:
    """Return the seconds to expect for each expensive stage of a run: `calibrate`, `quantize`, `verify` and `evaluate`,
    which is of baseline and artifact with all documents."""
    seen = seconds_of_runs(plan, suite, runtime, device)
    if {"evaluate baseline", "evaluate artifact"} <= seen.keys():
        seen["evaluate"] = seen["evaluate baseline"] + seen["evaluate artifact"]
    guessed = runtime != "transformers"  # whose products the probe does not run
    found: list[Expected] = []
    for stage, operations, more, is_guess in (
        ("quantize", _quantize_operations(plan), _quantize_seconds(plan), _other_engine(plan)),
        ("verify", _verify_operations(plan), 2 * START + _weights(plan) / ROUNDING_RATE, False),
        ("evaluate", *_evaluate_operations(plan, suite), guessed or not _known(suite)),
    ):
        if stage in seen:
            found.append(Expected(stage=stage, seconds=seen[stage], basis="finished runs"))
            continue
        basis: Basis = "a guess" if is_guess else "a probe of this machine"
        seconds = more + operations / (_rate(plan, device) * EFFICIENCY)
        found.append(Expected(stage=stage, seconds=seconds, basis=basis))
    return tuple(found)


def _quantize_seconds(plan: Plan) -> float:
    """Seconds that come on top of calibrating."""
    return (START if plan.recipe.calibrate else 0.0) + _weights(plan) / ROUNDING_RATE


def _other_engine(plan: Plan) -> bool:
    return plan.recipe.quantize.engine != "quantgate" or bool(plan.tensors)


def _known(suite: Suite) -> bool:
    """Whether the suite's files say how much there is to read, and nothing is to be written."""
    tasks = [load_task(task.task) for task in suite.tasks]
    return all(task.documents and task.tokens and task.filter is None for task in tasks)


def _weights(plan: Plan) -> int:
    if plan.tensors:
        return sum(tensor.elements for tensor in plan.tensors if tensor.quantized)
    return sum(math.prod(module.shape) for module in plan.quantized.values())


def _token_operations(checkpoint: Checkpoint) -> tuple[float, float]:
    """Operations for a token: of the layers (of a mixture, of the experts that it is sent to), and of the head."""
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
    return 2 * DISTANCE_CHUNKS * DISTANCE_CONTEXT * (body + head / 2)


def _evaluate_operations(plan: Plan, suite: Suite) -> tuple[float, float]:
    """Operations of evaluating both models in full, and the seconds that come on top."""
    body, head = _token_operations(plan.checkpoint)
    tokens = 0.0
    for wanted in suite.tasks:
        task = load_task(wanted.task)
        tokens += (task_documents(wanted) or DOCUMENTS) * (task.tokens or TOKENS) * (1 + wanted.shots) * wanted.seeds
    return 2 * tokens * (body + head / 4), 2 * START + 2 * TASKS_START * len(suite.tasks)


def _quantize_operations(plan: Plan) -> float:
    """Operations of calibrating: two passes of the tokens, second moments of inputs, and solving for the weights."""
    if not plan.recipe.calibrate:
        return 0.0
    body, _ = _token_operations(plan.checkpoint)
    tokens = plan.recipe.calibrate.samples * plan.recipe.calibrate.seq_len
    if plan.recipe.quantize.method == "rtn" or plan.tensors:
        return tokens * body
    shapes = [module.shape for module in plan.quantized.values()]
    moments = sum(2.0 * tokens * columns**2 for _, columns in shapes) / 2  # several modules read one input
    tries = 42 if plan.recipe.quantize.method == "awq" else 4
    return 2 * tokens * body + moments + sum(tries * rows * columns**2 for rows, columns in shapes)


class _Rate(Result):
    """What a machine computes."""

    operations: float
    """In a second, of float32 or 16-bit matrix products."""


def _rate(plan: Plan, device: str) -> float:
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
    return keep("probe", inputs, _Rate, lambda _: {"operations": probe(width, plan.dtype, device)}).operations


def probe(width: int, dtype: str, device: str) -> float:
    """Measure operations a second of products (rows, width) x (width, 3 width) in `dtype` on `device`."""
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
