"""Rounding to nearest: weights need no data, so that only the scales of activations are measured."""

import torch

from pipelines.formats import rounding
from pipelines.formats.description import Scales
from pipelines.quantization.methods.interface import CalibratedMethod, ScalesAt
from pipelines.quantization.methods.statistics import InputStatistics


def rtn() -> CalibratedMethod:
    """Return the method that rounds each weight to the nearest code and measures the source's activations."""
    return CalibratedMethod(
        measures_moments=False,
        follows_rounding=False,
        smoothing=None,
        choose_scales=cover_whole_range,
        round=round_to_nearest,
    )


def cover_whole_range(_: torch.Tensor, scales_at: ScalesAt, __: InputStatistics) -> Scales:
    """Return scales that map the largest magnitude of each group onto the largest code: nothing is clipped."""
    return scales_at(1.0)


def round_to_nearest(weight: torch.Tensor, scales: Scales, _: InputStatistics) -> torch.Tensor:
    """Return the codes nearest to `weight` (rows, columns)."""
    return rounding.quantize(weight, scales)
