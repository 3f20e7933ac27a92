"""Clipping: scales that leave out the largest magnitudes of a group, where finer steps make good for them."""

import torch

from pipelines.formats import rounding
from pipelines.formats.description import Scales
from pipelines.quantization.methods.interface import ScalesAt
from pipelines.quantization.methods.statistics import InputStatistics, bfloat16_products

SHARES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of the largest magnitude of a group that are tried besides the whole."""
FEW_BITS = 4
"""Bits up to which clipping is tried: with more of them, steps are fine enough as they are."""


def clip_few_bits(weight: torch.Tensor, scales_at: ScalesAt, inputs: InputStatistics) -> Scales:
    """Return clipped scales for numbers of few bits, and scales of the whole range for others."""
    whole = scales_at(1.0)
    return clipped_scales(weight, whole, scales_at, inputs) if whole.numbers.bits <= FEW_BITS else whole


def clipped_scales(weight: torch.Tensor, whole: Scales, scales_at: ScalesAt, inputs: InputStatistics) -> Scales:
    """Return for each group of `weight` (rows, columns) the scale, that of `whole` or a clipped one, that loses least.

    A loss is e H e^T for the error e of a row's group and the second moment H of the inputs it meets. Clipping moves a
    group's large weights the same way, so that what inputs have in common, which the diagonal of H leaves out, counts.
    """
    best = whole
    moments = _diagonal_blocks(inputs.hessian, weight.shape[1] // best.scale.shape[1])
    least = _loss_by_group(weight, best, moments)
    for share in SHARES:
        scales = scales_at(share)
        loss = _loss_by_group(weight, scales, moments)
        better = loss < least
        least = torch.where(better, loss, least)
        zero = None if best.zero is None or scales.zero is None else torch.where(better, scales.zero, best.zero)
        best = Scales(best.numbers, best.group_size, torch.where(better, scales.scale, best.scale), zero, best.tensor)
    return best


def _loss_by_group(weight: torch.Tensor, scales: Scales, moments: torch.Tensor) -> torch.Tensor:
    """Return e H e^T (rows, groups), to three digits."""
    error = rounding.dequantize(rounding.quantize(weight, scales), scales) - weight
    by_group = error.view(len(weight), *moments.shape[:2]).transpose(0, 1)  # (groups, rows, columns of a group)
    with bfloat16_products():
        return ((by_group @ moments) * by_group).sum(dim=-1).T


def _diagonal_blocks(matrix: torch.Tensor, size: int) -> torch.Tensor:
    """Return the square blocks on the diagonal of `matrix` (columns, columns): (columns / size, size, size)."""
    blocks = len(matrix) // size
    return matrix.view(blocks, size, blocks, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
