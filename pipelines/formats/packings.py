"""The layouts in which other projects store what compressed-tensors stores: the same codes, scales and zero points
under other names, in another order. Plain data, no torch; `pipelines.formats.repack` moves the bits.

- `gptq` (AutoGPTQ, GPTQModel): codes packed along the input, which is the first dimension; a zero point is stored as
  one less (their `checkpoint_format: gptq`, called v1).
- `awq` (AutoAWQ's GEMM): codes packed along the output, every eight of them in the order 0 2 4 6 1 3 5 7.
- `modelopt` (NVIDIA Model Optimizer's unified checkpoint): FP8 and NVFP4 with float32 scales of whole tensors, INT8 and
  INT4 with float32 scales; of INT4, two neighbouring outputs share a byte. Smoothing that is not folded into the norm
  before a module is stored with it: `pre_quant_scale` multiplies its input.
- `bitsandbytes` (as transformers stores NF4): a weight's codes row after row in one column of bytes, the first of two
  in the high bits, beside the largest magnitude of each group, the table of values, and a description in JSON.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal, assert_never

from pipelines.checkpoint.headers import Layout
from pipelines.core.strict_yaml import Frozen
from pipelines.formats import nf4
from pipelines.formats.description import group_count
from pipelines.formats.schemes import SCHEMES, SchemeName
from pipelines.formats.schemes import layout as stored

Packing = Literal["compressed-tensors", "gptq", "awq", "modelopt", "bitsandbytes"]

HOLDS: dict[Packing, tuple[SchemeName, ...]] = {
    "gptq": ("W4A16", "W4A16_ASYM"),
    "awq": ("W4A16", "W4A16_ASYM"),
    "modelopt": ("FP8_TENSOR", "NVFP4", "W8A8_STATIC", "W4A16"),
    "bitsandbytes": ("NF4",),
}
"""Packing other than compressed-tensors → the schemes that it can hold."""
WORD = 8
"""Number of codes of 4 bits in a word of 32: it must divide the size that is packed."""


class Form(Frozen):
    """The form in which a module's weight is stored."""

    packing: Packing
    scheme: SchemeName
    group_size: int | None


def layout(packing: Packing, scheme: SchemeName, shape: tuple[int, ...], dtype: str, group_size: int | None) -> Layout:
    """Return the tensors that replace a linear module's weight of `shape` (out, in) and source `dtype`."""
    rows, columns = shape
    groups = group_count(columns, group_size)
    match packing:
        case "compressed-tensors" | "bitsandbytes":
            return stored(scheme, shape, dtype, group_size)
        case "gptq":
            return {
                "qweight": ("I32", (columns // WORD, rows)),
                "qzeros": ("I32", (groups, rows // WORD)),
                "scales": ("F16", (groups, rows)),
                "g_idx": ("I32", (columns,)),
            }
        case "awq":
            return {
                "qweight": ("I32", (columns, rows // WORD)),
                "qzeros": ("I32", (groups, rows // WORD)),
                "scales": ("F16", (groups, rows)),
            }
        case "modelopt":
            scales: Layout = {"weight_scale": ("F32", ()), "input_scale": ("F32", ())}
            if scheme == "FP8_TENSOR":
                return {"weight": ("F8_E4M3", shape), **scales}
            if scheme == "W8A8_STATIC":
                return {"weight": ("I8", shape), **scales, "weight_scale": ("F32", (rows,))}
            if scheme == "W4A16":
                return {"weight": ("U8", (rows // 2, columns)), "weight_scale": ("F32", (rows, groups))}
            packed: Layout = {"weight": ("U8", (rows, columns // 2)), "weight_scale_2": ("F32", ())}
            return {**packed, **scales, "weight_scale": ("F8_E4M3", (rows, groups))}
    assert_never(packing)


def cannot_hold(packing: Packing, modules: Mapping[str, tuple[SchemeName, int | None, tuple[int, ...]]]) -> str | None:
    """Return why `packing` cannot hold these modules (name → scheme, group size, shape); None if it can."""
    if packing == "compressed-tensors" or not modules:
        return None
    kinds = {(scheme, group_size) for scheme, group_size, _ in modules.values()}
    for scheme, _ in sorted(kinds, key=str):
        if scheme not in HOLDS[packing]:
            return f"a {packing} checkpoint cannot hold {scheme}; it holds {', '.join(HOLDS[packing])}"
    if len(kinds) > 1:
        sizes = ", ".join(f"{scheme} {group_size or ''}".strip() for scheme, group_size in sorted(kinds, key=str))
        return f"a {packing} checkpoint has one scheme and group size, these modules have several ({sizes})"
    if packing in ("gptq", "awq"):
        odd = [name for name, (*_, shape) in modules.items() if any(side % WORD for side in shape)]
        if odd:
            return f"a {packing} checkpoint packs eight codes in a word, which does not divide the sides of {odd[0]}"
    return None


def quantization_config(form: Form, kept: Collection[str]) -> dict[str, Any]:
    """Return the `quantization_config` of a gptq or awq checkpoint; `kept` are the linear modules that are not
    quantized."""
    shared = {"bits": 4, "group_size": form.group_size}
    if form.packing == "gptq":
        config = {
            "quant_method": "gptq",
            "checkpoint_format": "gptq",
            **shared,
            "desc_act": False,
            "sym": SCHEMES[form.scheme].weights.symmetric,
            "lm_head": False,
            "pack_dtype": "int32",
        }
        skipped = exceptions(kept)
        return {**config, "dynamic": skipped} if skipped else config
    assert form.packing == "awq"
    unconverted = {"modules_to_not_convert": sorted(kept)} if kept else {}
    return {"quant_method": "awq", "version": "gemm", **shared, "zero_point": True, **unconverted}


def exceptions(kept: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the `dynamic` of a gptq config, GPTQModel's and vLLM's way to leave the modules `kept` out."""
    return {rf"-:^{re.escape(name)}$": {} for name in sorted(kept)}


def form_of(config: Mapping[str, Any]) -> Form | None:
    """Return the form that a `quantization_config` of gptq, awq, modelopt or bitsandbytes tells; None for another kind.

    Of modelopt's, `hf_quant_config.json` says more, which is expected here, too.

    Raises:
        ValueError: it is of a variant that is not read here.
    """
    method = config.get("quant_method")
    if method in ("gptq", "awq"):
        _check_variant(config)
        symmetric = method == "gptq" and bool(config.get("sym", True))
        scheme: SchemeName = "W4A16" if symmetric else "W4A16_ASYM"
        return Form(packing=method, scheme=scheme, group_size=int(config["group_size"]))
    if method == "bitsandbytes":
        for key, value in nf4.CONFIG.items():
            if config.get(key) != value:
                raise ValueError(f"a bitsandbytes checkpoint with {key} {config.get(key)} is not read here")
        return Form(packing="bitsandbytes", scheme="NF4", group_size=64)
    if method == "modelopt":
        algorithm = str(config.get("quant_algo"))
        schemes: dict[str, Form] = {
            "FP8": Form(packing="modelopt", scheme="FP8_TENSOR", group_size=None),
            "NVFP4": Form(packing="modelopt", scheme="NVFP4", group_size=16),
            "W8A8_SQ_PER_CHANNEL": Form(packing="modelopt", scheme="W8A8_STATIC", group_size=None),
            "W4A16_AWQ": Form(packing="modelopt", scheme="W4A16", group_size=config.get("group_size")),
        }
        if algorithm not in schemes:
            raise ValueError(f"a modelopt checkpoint with quant_algo {algorithm} is not read here")
        return schemes[algorithm]
    return None


def _check_variant(config: Mapping[str, Any]) -> None:
    """Refuse what a gptq or awq config asks for beyond 4 bits in groups, in the plain order."""
    expected = {"bits": 4, "desc_act": False, "checkpoint_format": "gptq", "version": "gemm"}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ValueError(f"a {config['quant_method']} checkpoint with {key} {config[key]} is not read here")
    if int(config.get("group_size") or -1) <= 0:
        raise ValueError(f"a {config['quant_method']} checkpoint without groups is not read here")
