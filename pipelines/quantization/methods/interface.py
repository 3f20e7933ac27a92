"""What a calibrated method decides; all else about a layer is the engine's."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipelines.formats.description import Scales
from pipelines.quantization.methods.smoothing import Smoothing
from pipelines.quantization.methods.statistics import InputStatistics

ScalesAt = Callable[[float], Scales]
"""Function from a share, 1 at most, to the scales of a weight that cover this share of each group's range."""


@dataclass(frozen=True)
class CalibratedMethod:
    """A method, as the layerwise engine asks it about the linear modules of a decoder layer.

    Modules that read one input and get one scheme are asked about as one: `weight` is (rows, columns) in float32, with
    the rows of all of them, and as smoothing left it.
    """

    measures_moments: bool
    """Whether the second moments of inputs are measured: (columns, columns) in float32 for each distinct input."""
    follows_rounding: bool
    """Whether the next layer, and the layer's keys and values, are measured with the rounded weights; with the source's
    otherwise, which spares a forward pass."""
    smoothing: Smoothing | None
    """How magnitude moves from inputs into weights before anything is rounded; None where it does not."""
    choose_scales: Callable[[torch.Tensor, ScalesAt, InputStatistics], Scales]
    """Function that returns the scales for a weight, from candidates that cover shares of its groups' ranges."""
    round: Callable[[torch.Tensor, Scales, InputStatistics], torch.Tensor]
    """Function that returns the codes of a weight, (rows, columns) in the dtype of `rounding.encode`."""
