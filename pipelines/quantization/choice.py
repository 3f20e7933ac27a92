"""The engine that a plan asks for, picked when it runs: engines import torch, and no plan should have to."""

from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, assert_never

from pipelines.calibration.tokens import CalibrationTokens
from pipelines.environments import isolated, llama_build
from pipelines.environments.engines import ENGINES
from pipelines.planning.plan import CheckpointPlan, GgufPlan, Plan
from pipelines.quantization.written import Written

EngineModule = Literal["streaming", "layerwise", "bitsandbytes", "other_projects"]
"""Name of the module of `pipelines.quantization.engines` that writes a checkpoint; `llama_cpp` writes a GGUF."""


def engine_modules(plan: Plan) -> tuple[str, ...]:
    """Return the full names of the modules that write the weights: the engine, and its worker elsewhere."""
    engine = "llama_cpp" if isinstance(plan, GgufPlan) else _engine_module(plan)
    modules = (f"pipelines.quantization.engines.{engine}",)
    if engine != "other_projects":
        return modules
    return *modules, f"pipelines.environments.workers.{ENGINES[plan.recipe.method.engine].worker}"


def engine_identity(plan: Plan) -> Any:
    """Return what decides the numbers beside our own code: another project's version, or its environment."""
    if isinstance(plan, GgufPlan):
        return llama_build.version()
    match _engine_module(plan):
        case "bitsandbytes":
            return version("bitsandbytes")
        case "other_projects":
            return isolated.identity(plan.recipe.engine)
        case "streaming" | "layerwise":
            return None
        case _ as never:
            assert_never(never)


def run_llama_cpp(plan: GgufPlan, tokens: CalibrationTokens | None, folder: Path) -> Written:
    """Let llama.cpp write the GGUF into `folder`."""
    from pipelines.quantization.engines import llama_cpp

    return llama_cpp.quantize(plan, tokens, folder)


def run_engine(plan: CheckpointPlan, tokens: CalibrationTokens | None, folder: Path) -> Written:
    """Let the plan's engine write the weight files into `folder`."""
    match _engine_module(plan):
        case "streaming":
            from pipelines.quantization.engines import streaming

            return streaming.quantize(plan, None, folder)
        case "layerwise":
            from pipelines.quantization.engines import layerwise

            assert tokens is not None
            return layerwise.quantize(plan, tokens, folder)
        case "bitsandbytes":
            from pipelines.quantization.engines import bitsandbytes

            return bitsandbytes.quantize(plan, tokens, folder)
        case "other_projects":
            from pipelines.quantization.engines import other_projects

            return other_projects.quantize(plan, tokens, folder)
        case _ as never:
            assert_never(never)


def _engine_module(plan: CheckpointPlan) -> EngineModule:
    match plan.recipe.method.engine:
        case "quantgate":
            return "layerwise" if plan.recipe.calibrate else "streaming"
        case "bitsandbytes":
            return "bitsandbytes"
        case _:
            return "other_projects"
