"""The table of the number formats that quantgate writes, and what compressed-tensors wants to be told of each.

Plain data, no torch; each entry is described in the module of its number format, and `pipelines.formats.rounding`
computes with it.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pipelines.checkpoint.headers import Layout
from pipelines.formats import fp8, int4, int8, mxfp4, nf4, nvfp4
from pipelines.formats.description import Numbers, Scheme

SchemeName = Literal[
    "FP8_DYNAMIC", "FP8_STATIC", "FP8_TENSOR", "FP8_BLOCK", "NVFP4", "NVFP4A16", "MXFP4", "NF4", "W8A8", "W8A8_STATIC",
    "W8A16", "W4A16", "W4A16_ASYM", "W4AFP8",
]  # fmt: skip
SCHEMES: dict[SchemeName, Scheme] = {
    "FP8_DYNAMIC": fp8.DYNAMIC,
    "FP8_STATIC": fp8.STATIC,
    "FP8_TENSOR": fp8.TENSOR,
    "FP8_BLOCK": fp8.BLOCK,
    "NVFP4": nvfp4.NVFP4,
    "NVFP4A16": nvfp4.NVFP4A16,
    "MXFP4": mxfp4.MXFP4,
    "NF4": nf4.NF4,
    "W8A8": int8.W8A8,
    "W8A8_STATIC": int8.W8A8_STATIC,
    "W8A16": int8.W8A16,
    "W4A16": int4.W4A16,
    "W4A16_ASYM": int4.W4A16_ASYM,
    "W4AFP8": int4.W4AFP8,
}
OWN_SCHEMES: tuple[SchemeName, ...] = tuple(name for name, scheme in SCHEMES.items() if scheme.own)
"""Schemes that quantgate's own engine writes."""
FAMILIES = {scheme.family.name: scheme.family for scheme in SCHEMES.values()}
"""Families by name, in the order that recipes are listed."""
VERSION = "0.19.0"
"""Version of compressed-tensors, whose format artifacts have."""
SMALLEST_GROUP = 16
"""Input columns of the smallest group that is taken: smaller ones cost more for scales than they win."""


def layout(scheme: SchemeName, shape: tuple[int, ...], dtype: str, group_size: int | None) -> Layout:
    """Return the tensors that replace a linear module's weight of `shape` (out, in) and source `dtype`."""
    chosen = SCHEMES[scheme]
    parts = chosen.storage.layout(chosen.weights, shape, dtype, group_size)
    if chosen.activations and chosen.calibrated:
        name, stored = chosen.activations.stored_scale(dtype)
        parts[name] = (stored, (1,))
    return parts


def config_group(scheme: SchemeName, targets: list[str], group_size: int | None) -> dict[str, Any]:
    """Return a group of compressed-tensors' `quantization_config` for modules that match `targets`."""
    chosen = SCHEMES[scheme]
    return {
        "format": chosen.format,
        "targets": targets,
        "weights": _arguments(chosen.weights, group_size, chosen),
        "input_activations": _arguments(chosen.activations, group_size, chosen) if chosen.activations else None,
        "output_activations": None,
    }


def scheme_of(group: Mapping[str, Any]) -> tuple[SchemeName, int | None]:
    """Return the scheme and group size of a group of compressed-tensors' `quantization_config`.

    Raises:
        ValueError: it is of none that is known here.
    """
    size = group["weights"].get("group_size") or (group["weights"].get("block_structure") or [None])[0]
    found = (name for name in SCHEMES if config_group(name, group["targets"], size) == group)
    if scheme := next(found, None):
        return scheme, size
    raise ValueError("a scheme that is not known here")


def quantization_config(
    modules: dict[str, tuple[SchemeName, int | None]], ignore: list[str], kv_cache: bool
) -> dict[str, Any]:
    """Return compressed-tensors' `quantization_config` of an artifact: each quantized module with its scheme and group
    size.

    A single group addresses all linear modules; with several, each names its modules one by one.
    """
    targets: dict[tuple[SchemeName, int | None], list[str]] = {}
    for name, key in modules.items():
        targets.setdefault(key, []).append(name)
    alone = len(targets) == 1
    groups = {
        f"group_{number}": config_group(scheme, ["Linear"] if alone else sorted(names), group_size)
        for number, ((scheme, group_size), names) in enumerate(sorted(targets.items(), key=str))
    }
    formats = {group["format"] for group in groups.values()}
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": sorted(ignore),
        "kv_cache_scheme": cache if kv_cache else None,
        "global_compression_ratio": None,
    }


def _arguments(numbers: Numbers, group_size: int | None, scheme: Scheme) -> dict[str, Any]:
    """Return compressed-tensors' QuantizationArgs for the weights or activations of `scheme`."""
    arguments: dict[str, Any] = {
        "num_bits": numbers.bits,
        "type": numbers.kind,
        "strategy": numbers.strategy,
        "symmetric": numbers.symmetric,
        "dynamic": numbers.dynamic,
    }
    if numbers.strategy == "block":
        arguments["block_structure"] = [group_size, group_size]
    elif numbers.group_size:
        arguments["group_size"] = group_size
    if stored := scheme.storage.scale_dtype:
        arguments |= {"scale_dtype": stored, "zp_dtype": stored}
    return arguments
