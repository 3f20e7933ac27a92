"""The engines of other projects, each described once: what it can do here, and what it needs.

A new engine is an entry of `ENGINES`, a worker in `workers/` and a lock in `locks/`.
"""

from typing import Literal

from pydantic import Field

from pipelines.core.strict_yaml import Frozen
from pipelines.formats.packings import Packing
from pipelines.formats.schemes import SchemeName

Engine = Literal["quantgate", "gptqmodel", "modelopt", "auto-gptq", "autoawq", "bitsandbytes"]
"""Name of an engine that a recipe may ask for; `quantgate` is ours."""
Setting = Literal["method", "scheme", "symmetric", "group_size", "kept", "dynamic", "dampening"]
"""Name of something that the worker of an engine may be told (`quantization.engines.other_projects`)."""


class OtherEngine(Frozen):
    """An engine of another project."""

    name: Engine
    title: str
    """Name that its project gives it."""
    schemes: dict[str, tuple[SchemeName, ...]]
    """Method → the schemes that the engine quantizes to here."""
    packings: dict[str, Packing]
    """Method → packing in which the engine stores weights."""
    imports: str = ""
    """Module that is imported to see that the engine's own environment works; empty where it runs in our process."""
    settings: tuple[Setting, ...] = ()
    """Settings that its worker is told."""
    clips_together: dict[str, int] = Field(default={})
    """Method → the number of output features that the engine clips at a time, and which has to divide them."""
    known_models: tuple[str, ...] = ()
    """Model types that an engine without maintainers was seen to quantize in full; empty where any is taken."""
    without_cuda: str = ""
    """Advice where an engine that needs CUDA finds none; empty for an engine that needs none."""
    stores_factors: bool = False
    """Whether smoothing factors that no norm can take are stored beside the weight."""

    @property
    def worker(self) -> str:
        """Name of the module of `pipelines.environments.workers` that drives the engine."""
        return f"{self.name.replace('-', '_')}_engine"

    @property
    def lock(self) -> str:
        """Name of the file of `locks/` that its environment is made from."""
        return f"{self.name}.txt"


ENGINES: dict[Engine, OtherEngine] = {
    engine.name: engine
    for engine in (
        OtherEngine(
            name="gptqmodel",
            title="GPTQModel",
            schemes={"gptq": ("W4A16",), "awq": ("W4A16_ASYM",)},
            packings={"gptq": "gptq", "awq": "awq"},
            imports="gptqmodel",
            settings=("method", "symmetric", "group_size", "dynamic", "dampening"),
            clips_together={"awq": 64},
        ),
        OtherEngine(
            name="modelopt",
            title="Model Optimizer",
            schemes={"rtn": ("FP8_TENSOR", "NVFP4", "W8A8_STATIC"), "awq": ("W4A16",)},
            packings={"rtn": "modelopt", "awq": "modelopt"},
            imports="modelopt.torch.quantization",
            settings=("scheme", "group_size", "kept"),
            stores_factors=True,
        ),
        OtherEngine(
            name="auto-gptq",
            title="AutoGPTQ",
            schemes={"gptq": ("W4A16",)},
            packings={"gptq": "gptq"},
            imports="auto_gptq",
            settings=("group_size", "dampening"),
            known_models=("llama", "mistral", "gemma"),
            without_cuda="--experimental-cpu replaces two names inside it; recipes gptq-gptqmodel and int4-gptq need "
            "no GPU",
        ),
        OtherEngine(
            name="autoawq",
            title="AutoAWQ",
            schemes={"awq": ("W4A16_ASYM",)},
            packings={"awq": "awq"},
            imports="awq",
            settings=("group_size",),
            known_models=("llama", "mistral", "qwen2", "qwen3", "gemma"),
        ),
        OtherEngine(
            name="bitsandbytes", title="bitsandbytes", schemes={"rtn": ("NF4",)}, packings={"rtn": "bitsandbytes"}
        ),
    )
}


def engine_of(scheme: SchemeName) -> Engine:
    """Return the first engine that quantizes to `scheme`, which ours does not."""
    return next(engine.name for engine in ENGINES.values() if any(scheme in known for known in engine.schemes.values()))
