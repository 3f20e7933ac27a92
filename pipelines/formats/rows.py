"""The common part of rounding activations: scales of tokens, groups of features, and rows that fit a CPU's cache."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

CACHED = 1 << 17
"""Numbers that are rounded together on a CPU: half a megabyte of float32."""


def by_rows(change: "Callable[[torch.Tensor], torch.Tensor]", x: "torch.Tensor") -> "torch.Tensor":
    """Apply `change` to rows of `x` (…, features), on a CPU as many at a time as its cache holds: what lies between the
    steps of `change` then never travels to memory."""
    import torch

    if x.device.type != "cpu" or x.numel() <= CACHED:
        return change(x)
    rows, result = x.reshape(-1, x.shape[-1]), torch.empty_like(x, memory_format=torch.contiguous_format)
    step = max(1, CACHED // x.shape[-1])
    for first in range(0, len(rows), step):
        result.view(rows.shape)[first : first + step] = change(rows[first : first + step])
    return result


def token_scale(x: "torch.Tensor", limit: float) -> "torch.Tensor":
    """Return the scales (…, 1) that map the largest magnitude of each row of `x` (…, features) onto `limit`."""
    import torch

    scale = x.abs().amax(dim=-1, keepdim=True) / limit
    return torch.where(scale == 0, torch.finfo(x.dtype).eps, scale)


def in_groups(x: "torch.Tensor", size: int) -> "torch.Tensor":
    """Return `x` (…, features) as (…, groups, size)."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
