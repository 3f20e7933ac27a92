"""The engine that a plan asks for, picked when it runs: engines import torch, and no plan should have to."""

from importlib.metadata import version
from pathlib import Path
from typing import Any, assert_never

from pipelines.calibration.tokens import CalibrationTokens
from pipelines.environments import isolated, llama_build
from pipelines.environments.engines import ENGINES
from pipelines.planning.plan import CheckpointPlan, GgufPlan, Plan
from pipelines.quantization.written import Written

PACKAGE = "pipelines.quantization.engines"
WORKERS = "pipelines.environments.workers"


def engine_modules(plan: Plan) -> tuple[str, ...]:
    """Return the full names of the modules that write the weights: the engine, and its worker elsewhere."""
    if isinstance(plan, GgufPlan):
        return (f"{PACKAGE}.llama_cpp",)
    match plan.recipe.method.engine:
        case "bitsandbytes":
            return (f"{PACKAGE}.bitsandbytes",)
        case "gptqmodel" | "modelopt" | "auto-gptq" | "autoawq" as engine:
            return f"{PACKAGE}.other_projects", f"{WORKERS}.{ENGINES[engine].worker}"
        case "quantgate":
            return (f"{PACKAGE}.{'layerwise' if plan.recipe.calibrate else 'streaming'}",)
        case _ as never:
            assert_never(never)


def engine_identity(plan: Plan) -> Any:
    """Return what decides the numbers beside code of ours: another project's version, or its environment."""
    if isinstance(plan, GgufPlan):
        return llama_build.version()
    match plan.recipe.method.engine:
        case "bitsandbytes":
            return version("bitsandbytes")
        case "gptqmodel" | "modelopt" | "auto-gptq" | "autoawq" as engine:
            return isolated.identity(engine)
        case "quantgate":
            return None
        case _ as never:
            assert_never(never)


def run_llama_cpp(plan: GgufPlan, tokens: CalibrationTokens | None, folder: Path) -> Written:
    """Let llama.cpp write the GGUF into `folder`."""
    from pipelines.quantization.engines import llama_cpp

    return llama_cpp.quantize(plan, tokens, folder)


def run_engine(plan: CheckpointPlan, tokens: CalibrationTokens | None, folder: Path) -> Written:
    """Let the plan's engine write the weight files into `folder`."""
    match plan.recipe.method.engine:
        case "bitsandbytes":
            from pipelines.quantization.engines import bitsandbytes

            return bitsandbytes.quantize(plan, tokens, folder)
        case "gptqmodel" | "modelopt" | "auto-gptq" | "autoawq":
            from pipelines.quantization.engines import other_projects

            return other_projects.quantize(plan, tokens, folder)
        case "quantgate":
            return _run_own_engine(plan, tokens, folder)
        case _ as never:
            assert_never(never)


def _run_own_engine(plan: CheckpointPlan, tokens: CalibrationTokens | None, folder: Path) -> Written:
    if tokens is None:
        from pipelines.quantization.engines import streaming

        return streaming.quantize(plan, None, folder)
    from pipelines.quantization.engines import layerwise

    return layerwise.quantize(plan, tokens, folder)
