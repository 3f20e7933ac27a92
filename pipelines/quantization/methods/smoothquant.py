"""SmoothQuant (Xiao et al. 2211.10438): outliers of activations move into weights, so that both are easier to round.

A setting of other methods, and no method of its own.
"""

from collections.abc import Mapping

import torch

from pipelines.quantization.methods.smoothing import Smoothing
from pipelines.quantization.methods.statistics import InputStatistics


def smoothquant(strength: float) -> Smoothing:
    """Return the smoothing of what norms write; `strength`, from 0 to 1, is the share of outliers that weights take."""

    def find_factors(weights: Mapping[str, torch.Tensor], inputs: InputStatistics, *_: object) -> torch.Tensor:
        return smoothquant_factors(list(weights.values()), inputs, strength)

    return Smoothing(find_factors, norms_only=True)


def smoothquant_factors(weights: list[torch.Tensor], inputs: InputStatistics, strength: float) -> torch.Tensor:
    """Return max|x|^a / max|w|^(1-a) for each input column (columns,), where a is `strength` (eq. 4)."""
    of_weights = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    factors = inputs.largest.clamp(min=1e-5) ** strength / of_weights.clamp(min=1e-5) ** (1 - strength)
    return torch.where(inputs.largest > 0, factors, torch.ones_like(factors))
