"""Single layers with inputs, and the scales that methods find for them."""

import torch

from pipelines.formats import nvfp4, rounding
from pipelines.formats.description import Scales
from pipelines.formats.schemes import SCHEMES, SchemeName

DAMPENING = 0.01


def inputs(columns: int, tokens: int = 256) -> torch.Tensor:
    """Correlated inputs of very different energy (tokens, columns)."""
    draw = torch.Generator().manual_seed(columns)
    mix = torch.randn(columns, columns, generator=draw) / columns**0.5 + torch.eye(columns)
    x: torch.Tensor = torch.randn(tokens, columns, generator=draw) @ mix * torch.logspace(-1, 1, columns)
    return x


def moment(x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = x.T @ x / len(x)
    return found


def scales_of(weight: torch.Tensor, scheme: SchemeName, group_size: int | None) -> Scales:
    largest = weight.abs().amax() if SCHEMES[scheme].weights.strategy == "tensor_group" else None
    tensor_scale = None if largest is None else nvfp4.tensor_scale(largest)
    return rounding.find_scales(weight, scheme, group_size, tensor_scale)


def energy(error: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr(E H E^T): what an error of the weight adds to the outputs, squared, for each token."""
    return float(torch.einsum("ri,ij,rj->", error.double(), hessian.double(), error.double()))
