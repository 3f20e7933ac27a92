"""The number formats quantgate writes, as compressed-tensors names and stores them: the one place that knows them.

Plain data, no torch; `pipelines.formats.rounding` does the arithmetic.
"""

from typing import Any, Literal, assert_never

from pipelines.checkpoint.headers import Layout
from pipelines.core.strict_yaml import Frozen

SchemeName = Literal[
    "FP8_DYNAMIC", "FP8_STATIC", "FP8_TENSOR", "FP8_BLOCK", "NVFP4", "NVFP4A16", "MXFP4", "NF4", "W8A8", "W8A8_STATIC",
    "W8A16", "W4A16", "W4A16_ASYM", "W4AFP8",
]  # fmt: skip
Format = Literal[
    "float-quantized", "int-quantized", "pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized", "bitsandbytes"
]  # fmt: skip
Strategy = Literal["tensor", "channel", "token", "group", "tensor_group", "block"]
FP8_MAX = 448.0
"""Largest finite value of float8_e4m3fn."""
FP4_MAX = 6.0
"""Largest value of E2M1."""
SMALLEST_GROUP = 16
"""Groups smaller than this cost more for scales than they win."""


class Numbers(Frozen):
    """How weights or activations are rounded (compressed-tensors' QuantizationArgs)."""

    bits: int
    kind: Literal["int", "float", "normal"]
    """`normal`: the quantiles of a normal distribution (NF4)."""
    strategy: Strategy
    """Which elements share a scale."""
    group_size: int | None = None
    """Input columns that share a scale, for the strategies group, tensor_group and block."""
    symmetric: bool = True
    dynamic: bool | Literal["local"] = False
    """Whether scales are found at run time; `local`: those of each group are, the tensor's own is not."""


class Scheme(Frozen):
    """A pair of number formats, for weights and for activations."""

    family: Literal["FP8", "FP4", "NF4", "INT8", "INT4"]
    format: Format
    weights: Numbers
    activations: Numbers | None = None
    """None: activations stay in 16 bits."""
    hardware: str
    """Where a runtime has kernels for it."""

    @property
    def calibrated(self) -> bool:
        """Whether a scale of the activations has to be measured."""
        return self.activations is not None and self.activations.dynamic is not True

    @property
    def resizable(self) -> bool:
        """Whether the group size is the recipe's to choose."""
        return self.is_block or (self.weights.kind == "int" and self.weights.strategy == "group")

    @property
    def is_block(self) -> bool:
        return self.weights.strategy == "block"


ADA = "NVIDIA GPUs of compute capability 8.9 or later (Ada, Hopper, Blackwell)"
HOPPER = "NVIDIA GPUs of compute capability 9.0 or later (Hopper, Blackwell)"
BLACKWELL = "NVIDIA GPUs of compute capability 10.0 or later (Blackwell)"
HOPPER_ONLY = "NVIDIA GPUs of compute capability 9.0 (Hopper), for layers whose sides 128 divides"
TURING = "NVIDIA GPUs of compute capability 7.5 or later (Turing on)"
TURING_TO_HOPPER = "NVIDIA GPUs of compute capability 7.5 to 9.0 (Turing to Hopper)"
"""vLLM has no kernel for INT8 activations on Blackwell."""
AMPERE = "NVIDIA GPUs of compute capability 8.0 or later (Ampere on)"
"""What TensorRT-LLM runs on."""

_INT8 = Numbers(bits=8, kind="int", strategy="channel")
_INT4 = Numbers(bits=4, kind="int", strategy="group", group_size=128)
_FP8 = Numbers(bits=8, kind="float", strategy="channel")
_FP8_TOKEN = Numbers(bits=8, kind="float", strategy="token", dynamic=True)
_FP4_16 = Numbers(bits=4, kind="float", strategy="tensor_group", group_size=16)
_FP4_32 = Numbers(bits=4, kind="float", strategy="group", group_size=32)
SCHEMES: dict[SchemeName, Scheme] = {
    "FP8_DYNAMIC": Scheme(
        family="FP8", format="float-quantized", weights=_FP8, activations=_FP8_TOKEN, hardware=f"{ADA}, AMD MI300"
    ),
    "FP8_STATIC": Scheme(
        family="FP8",
        format="float-quantized",
        weights=_FP8,
        activations=Numbers(bits=8, kind="float", strategy="tensor"),
        hardware=f"{ADA}, AMD MI300",
    ),
    "FP8_TENSOR": Scheme(
        family="FP8",
        format="float-quantized",
        weights=Numbers(bits=8, kind="float", strategy="tensor"),
        activations=Numbers(bits=8, kind="float", strategy="tensor"),
        hardware=ADA,
    ),
    "FP8_BLOCK": Scheme(
        family="FP8",
        format="float-quantized",
        weights=Numbers(bits=8, kind="float", strategy="block", group_size=128),
        activations=Numbers(bits=8, kind="float", strategy="group", group_size=128, dynamic=True),
        hardware=HOPPER,
    ),
    "NVFP4": Scheme(
        family="FP4",
        format="nvfp4-pack-quantized",
        weights=_FP4_16,
        activations=_FP4_16.model_copy(update={"dynamic": "local"}),
        hardware=BLACKWELL,
    ),
    "NVFP4A16": Scheme(
        family="FP4",
        format="nvfp4-pack-quantized",
        weights=_FP4_16,
        hardware=f"{BLACKWELL}; through Marlin also from Turing on",
    ),
    "MXFP4": Scheme(
        family="FP4",
        format="mxfp4-pack-quantized",
        weights=_FP4_32,
        activations=_FP4_32.model_copy(update={"dynamic": True}),
        hardware=f"{BLACKWELL}, AMD MI350",
    ),
    "NF4": Scheme(
        family="NF4",
        format="bitsandbytes",
        weights=Numbers(bits=4, kind="normal", strategy="group", group_size=64),
        hardware="NVIDIA GPUs of compute capability 6.0 or later (Pascal on), AMD and Intel GPUs, CPUs",
    ),
    "W8A8": Scheme(
        family="INT8",
        format="int-quantized",
        weights=_INT8,
        activations=Numbers(bits=8, kind="int", strategy="token", dynamic=True),
        hardware=f"{TURING_TO_HOPPER}, x86 CPUs",
    ),
    "W8A8_STATIC": Scheme(
        family="INT8",
        format="int-quantized",
        weights=_INT8,
        activations=Numbers(bits=8, kind="int", strategy="tensor"),
        hardware=AMPERE,
    ),
    "W8A16": Scheme(family="INT8", format="pack-quantized", weights=_INT8, hardware=TURING),
    "W4A16": Scheme(family="INT4", format="pack-quantized", weights=_INT4, hardware=f"{TURING}, x86 CPUs"),
    "W4A16_ASYM": Scheme(
        family="INT4",
        format="pack-quantized",
        weights=_INT4.model_copy(update={"symmetric": False}),
        hardware=f"{TURING}, x86 CPUs",
    ),
    "W4AFP8": Scheme(
        family="INT4", format="pack-quantized", weights=_INT4, activations=_FP8_TOKEN, hardware=HOPPER_ONLY
    ),
}
OWN_SCHEMES: tuple[SchemeName, ...] = tuple(
    name for name in SCHEMES if name not in ("FP8_TENSOR", "W8A8_STATIC", "NF4")
)
"""Those that quantgate's own engine writes. A scale for a whole tensor is Model Optimizer's way, and TensorRT-LLM's."""


def layout(scheme: SchemeName, shape: tuple[int, ...], dtype: str, group_size: int | None) -> Layout:
    """The tensors that replace a linear module's weight of `shape` (out, in) and source `dtype`."""
    rows, columns = shape
    chosen = SCHEMES[scheme]
    groups = columns // group_size if group_size else 1
    match chosen.format:
        case "float-quantized":
            blocks = rows // group_size if chosen.is_block and group_size else rows
            parts: Layout = {"weight": ("F8_E4M3", shape), "weight_scale": (dtype, (blocks, groups))}
        case "int-quantized":
            parts = {"weight": ("I8", shape), "weight_scale": (dtype, (rows, 1))}
        case "pack-quantized":
            words = -(-columns * chosen.weights.bits // 32)
            parts = {
                "weight_packed": ("I32", (rows, words)),
                "weight_scale": (dtype, (rows, groups)),
                "weight_shape": ("I64", (2,)),
            }
            if not chosen.weights.symmetric:
                parts["weight_zero_point"] = ("I32", (-(-rows * chosen.weights.bits // 32), groups))
        case "nvfp4-pack-quantized":
            parts = {
                "weight_packed": ("U8", (rows, columns // 2)),
                "weight_scale": ("F8_E4M3", (rows, groups)),
                "weight_global_scale": ("F32", (1,)),
            }
        case "mxfp4-pack-quantized":
            parts = {"weight_packed": ("U8", (rows, columns // 2)), "weight_scale": ("U8", (rows, groups))}
        case "bitsandbytes":
            raise ValueError(f"{scheme} is not a scheme of compressed-tensors")
        case _:
            assert_never(chosen.format)
    if chosen.calibrated:
        name, stored = ("input_global_scale", "F32") if chosen.family == "FP4" else ("input_scale", dtype)
        parts[name] = (stored, (1,))
    return parts


def config_group(scheme: SchemeName, targets: list[str], group_size: int | None) -> dict[str, Any]:
    """A group of compressed-tensors' `quantization_config` for modules that match `targets`."""
    chosen = SCHEMES[scheme]
    return {
        "format": chosen.format,
        "targets": targets,
        "weights": _arguments(chosen.weights, group_size, chosen),
        "input_activations": _arguments(chosen.activations, group_size, chosen) if chosen.activations else None,
        "output_activations": None,
    }


def quantization_config(
    modules: dict[str, tuple[SchemeName, int | None]], ignore: list[str], kv_cache: bool
) -> dict[str, Any]:
    """compressed-tensors' `quantization_config` of an artifact: each quantized module with its scheme and group size.

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


VERSION = "0.19.0"
"""Of compressed-tensors, whose format this is."""


def _arguments(numbers: Numbers, group_size: int | None, scheme: Scheme) -> dict[str, Any]:
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
    if scheme.format in FP4_SCALES:
        arguments |= dict.fromkeys(("scale_dtype", "zp_dtype"), FP4_SCALES[scheme.format])
    return arguments


FP4_SCALES = {"nvfp4-pack-quantized": "torch.float8_e4m3fn", "mxfp4-pack-quantized": "torch.uint8"}
