"""The number formats quantgate writes, as compressed-tensors stores them: the one place that knows their layout."""

from collections.abc import Mapping
from typing import Any, assert_never

from pipelines.recipe import Gptq, Rtn

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor suffix → (safetensors dtype, shape)."""

FP8_MAX = 448.0
"""Largest finite value of float8_e4m3fn."""


def layout(quantize: Rtn | Gptq, shape: tuple[int, ...], dtype: str, group_size: int | None) -> Layout:
    """The tensors that replace a linear module's weight of `shape` (out, in) and source `dtype`."""
    rows, columns = shape
    match quantize.scheme:
        case "FP8_DYNAMIC":
            return {"weight": ("F8_E4M3", shape), "weight_scale": (dtype, (rows, 1))}
        case "W8A8":
            return {"weight": ("I8", shape), "weight_scale": (dtype, (rows, 1))}
        case "W4A16":
            assert group_size
            return {
                "weight_packed": ("I32", (rows, -(-columns // 8))),
                "weight_scale": (dtype, (rows, columns // group_size)),
                "weight_shape": ("I64", (2,)),
            }
        case _:
            assert_never(quantize.scheme)


def config_group(scheme: str, targets: list[str], group_size: int | None) -> dict[str, Any]:
    """A group of compressed-tensors' `quantization_config` for modules that match `targets`."""
    weights: dict[str, Any] = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
    tokens: dict[str, Any] = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
    match scheme:
        case "FP8_DYNAMIC":
            weights["type"] = tokens["type"] = "float"
            return _group("float-quantized", targets, weights, tokens)
        case "W8A8":
            return _group("int-quantized", targets, weights, tokens)
        case "W4A16":
            weights |= {"num_bits": 4, "strategy": "group", "group_size": group_size}
            return _group("pack-quantized", targets, weights, None)
        case _:
            raise AssertionError(scheme)


def _group(
    form: str, targets: list[str], weights: Mapping[str, Any], tokens: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "format": form,
        "targets": targets,
        "weights": dict(weights),
        "input_activations": dict(tokens) if tokens else None,
        "output_activations": None,
    }
