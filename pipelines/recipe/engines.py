"""The engines that quantize, as data: one description for each."""

from typing import Literal

from pipelines.formats.schemes import SchemeName

Engine = Literal["quantgate", "gptqmodel", "modelopt", "auto-gptq", "autoawq", "bitsandbytes"]
OTHERS: dict[Engine, dict[str, tuple[SchemeName, ...]]] = {
    "gptqmodel": {"gptq": ("W4A16",), "awq": ("W4A16_ASYM",)},
    "modelopt": {"rtn": ("FP8_TENSOR", "NVFP4", "W8A8_STATIC"), "awq": ("W4A16",)},
    "auto-gptq": {"gptq": ("W4A16",)},
    "autoawq": {"awq": ("W4A16_ASYM",)},
    "bitsandbytes": {"rtn": ("NF4",)},
}
"""The engines of other projects: method → the schemes that they quantize to here."""


def engine_of(scheme: SchemeName) -> Engine:
    return next(engine for engine, methods in OTHERS.items() if any(scheme in known for known in methods.values()))
