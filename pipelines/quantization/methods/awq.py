"""AWQ (Lin et al. 2306.00978): input columns that matter are scaled up before they are rounded to nearest."""

from collections.abc import Mapping

import torch

from pipelines.quantization.methods.clipping import clip_few_bits
from pipelines.quantization.methods.interface import CalibratedMethod
from pipelines.quantization.methods.rtn import round_to_nearest
from pipelines.quantization.methods.smoothing import Rounder, Smoothing
from pipelines.quantization.methods.statistics import InputStatistics, bfloat16_products

STRENGTHS = 20
"""Number of strengths that are tried, besides none."""
ROWS = 4096
"""Rows of a weight, evenly spaced, that candidates are tried on at most (512 of 1,536 raised the default model's KL
divergence by 2 %)."""


def awq() -> CalibratedMethod:
    """Return the method that smooths by `awq_factors`, clips, and rounds to nearest."""
    return CalibratedMethod(
        measures_moments=True,
        follows_rounding=True,
        smoothing=Smoothing(awq_factors, norms_only=False),
        choose_scales=clip_few_bits,
        round=round_to_nearest,
    )


def awq_factors(
    weights: Mapping[str, torch.Tensor], inputs: InputStatistics, group_size: int | None, rounder: Rounder
) -> torch.Tensor:
    """Return the factors (columns,) that lose least among powers of the inputs' magnitude.

    A loss is the energy that rounding adds to the modules' outputs, tr(E H E^T) for the error E of the weight and the
    inputs' second moment H: over all calibration tokens, and without running the model again for each candidate.
    """
    of_inputs = inputs.mean_magnitude.clamp(min=1e-6)
    of_weights = _relative_magnitude(list(weights.values()), group_size)
    stride = -(-max(map(len, weights.values())) // ROWS)
    some = {name: weight[::stride] for name, weight in weights.items()}
    best, least = torch.ones_like(of_inputs), float("inf")
    for step in range(STRENGTHS + 1):
        ratio = step / STRENGTHS
        factors = (of_inputs**ratio / (of_weights ** (1 - ratio) + 1e-4)).clamp(min=1e-4)
        factors = factors / (factors.max() * factors.min()).sqrt() if step else torch.ones_like(factors)
        loss = sum(output_loss(rounder(w * factors, name) / factors - w, inputs) for name, w in some.items())
        if loss < least:
            best, least = factors, loss
    return best


def output_loss(error: torch.Tensor, inputs: InputStatistics) -> float:
    """Return tr(E H E^T) for a weight's error E (rows, columns); to three digits, which is enough to choose by."""
    with bfloat16_products():
        return float(((error @ inputs.hessian) * error).sum())


def _relative_magnitude(weights: list[torch.Tensor], group_size: int | None) -> torch.Tensor:
    """Return the mean over all rows of each column's magnitude, relative to the largest of its group (columns,)."""
    rows = torch.cat(weights).abs()
    groups = rows.reshape(-1, group_size or rows.shape[1])
    return (groups / (groups.amax(dim=1, keepdim=True) + 1e-6)).view_as(rows).mean(dim=0)
