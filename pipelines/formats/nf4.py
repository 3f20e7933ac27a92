"""NF4 (Dettmers et al. 2305.14314): 16 quantiles of a normal distribution, with a float32 scale for each 64 elements.

bitsandbytes rounds it and names its tensors; here it is described and read.
"""

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from pipelines.checkpoint.dtypes import NAMES
from pipelines.checkpoint.headers import Layout
from pipelines.core.errors import QuantgateError
from pipelines.formats.description import Changes, Element, Family, Scales, Scheme, Storage, Weights, group_count

if TYPE_CHECKING:
    import torch

VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution, with an exact zero (appendix E)."""
CONFIG = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False}
"""Entries of a bitsandbytes `quantization_config` that say that it is NF4 as it is read here."""


def quantization_config(kept: Collection[str], dtype: str) -> dict[str, Any]:
    """Return the `quantization_config` of a checkpoint that computes in `dtype` (torch's name); `kept` are the linear
    modules that are not quantized."""
    return {
        "quant_method": "bitsandbytes",
        **CONFIG,
        "load_in_8bit": False,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": sorted(kept),
    }


def decode(codes: "torch.Tensor") -> "torch.Tensor":
    """Return `codes` as float32."""
    import torch

    return torch.tensor(VALUES, device=codes.device)[codes.int()]


def _left_to_bitsandbytes(*_: Any) -> NoReturn:
    raise NotImplementedError("bitsandbytes rounds and packs NF4")


def _layout(_weights: Weights, shape: tuple[int, ...], dtype: str, group_size: int | None) -> Layout:
    rows, columns = shape
    said = {"quant_type": "nf4", "blocksize": group_size, "dtype": NAMES[dtype], "shape": shape}
    return {
        "weight": ("U8", (rows * columns // 2, 1)),
        "weight.absmax": ("F32", (rows * group_count(columns, group_size),)),
        "weight.quant_map": ("F32", (16,)),
        "weight.quant_state.bitsandbytes__nf4": ("U8", (len(json.dumps(said)),)),
    }


def _unpack(
    parts: "Mapping[str, torch.Tensor]", weights: Weights, group_size: int | None, _columns: int
) -> "tuple[torch.Tensor, Scales]":
    """Return codes and scales of what bitsandbytes stores as one column; its own description tells the shape."""
    import torch

    rows, columns = json.loads(bytes(parts["weight.quant_state.bitsandbytes__nf4"].tolist()))["shape"]
    if not torch.equal(parts["weight.quant_map"].cpu(), torch.tensor(VALUES)):
        raise QuantgateError("its table of values is not that of NF4")
    packed = parts["weight"].flatten()
    codes = torch.stack([packed >> 4, packed & 0xF], dim=-1).reshape(rows, columns)
    return codes, Scales(weights, group_size, parts["weight.absmax"].reshape(rows, -1))


NF4 = Scheme(
    family=Family(
        "NF4",
        "NormalFloat: 16 values spaced like the quantiles of a normal distribution, looked up by a code of 4 bits. "
        "It is no floating point; weights are turned back into 16 bits to compute with.",
    ),
    changes=Changes(discordance=0.12, deviation=0.18),
    storage=Storage("bitsandbytes", _layout, _left_to_bitsandbytes, _unpack),
    weights=Weights(
        element=Element("NF4 (NormalFloat)", "normal", 4, _left_to_bitsandbytes, decode, _left_to_bitsandbytes),
        strategy="group",
        group_size=64,
        scale=_left_to_bitsandbytes,
    ),
    own=False,
)
