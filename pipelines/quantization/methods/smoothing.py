"""Moving magnitude between a layer's weights and what comes before them, so that both are easier to round.

The input columns of some linear modules are multiplied, and the norm or the linear module that writes this input is
divided, by the same positive factors: in exact arithmetic the model does not change. Which module feeds which in an
architecture is llmcompressor's knowledge (its AWQ mappings).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.formats import rounding
from pipelines.formats.description import Scales
from pipelines.quantization.methods.statistics import InputStatistics, bfloat16_products
from pipelines.runtimes.module_names import quietly

GRID = 20
"""Strengths that AWQ tries."""
ROWS = 4096
"""Of a weight at most, evenly spaced, that AWQ's candidates are tried on (512 of 1,536 raised the default model's KL
divergence by 2 %)."""
SHRINKS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Of the largest magnitude of a group, that AWQ's clipping tries besides the whole."""


@dataclass(frozen=True)
class Link:
    """`source` (a norm, or a linear module by the last of its output rows) writes what `readers` read."""

    source: str
    readers: tuple[str, ...]


Rounder = Callable[[torch.Tensor, str], torch.Tensor]
"""A weight (rows, columns) in float32 and its module's name → what it would be after quantization."""


def find_links(model: Any, names: Iterable[str], quantized: Mapping[str, torch.Tensor]) -> list[Link]:
    """The links among modules `names` of one decoder layer whose readers are all in `quantized` (name → weight).

    A norm that a router of experts reads too is left out: one factor for all experts sets them against each other.
    """
    with quietly():
        from llmcompressor.modifiers.transform.awq.dynamic_mappings import get_layer_mappings_from_model

    links = []
    names = sorted(names)
    for mapping in get_layer_mappings_from_model(model):
        sources = [name for name in names if _matches(mapping.smooth_layer, name)]
        readers = [name for name in names if any(_matches(p, name) for p in mapping.balance_layers)]
        for source in sources:
            near = [name for name in readers if len(sources) == 1 or _parent(name) == _parent(source)]
            if near and all(name in quantized for name in near) and _fits(model, source, near, quantized):
                links.append(Link(source, tuple(near)))
    return links


def _matches(pattern: str, name: str) -> bool:
    return re.match(pattern[3:], name) is not None if pattern.startswith("re:") else name.endswith(pattern)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _fits(model: Any, source: str, readers: list[str], quantized: Mapping[str, torch.Tensor]) -> bool:
    columns = {quantized[name].shape[1] for name in readers}
    weight = getattr(model.get_submodule(source), "weight", None)  # an activation function has none
    if weight is None or len(columns) != 1:
        return False
    if weight.ndim == 1:
        return weight.shape[0] in columns and not any(".experts." in name for name in readers)
    parts = {"qkv_proj": 3, "gate_up_proj": 2}.get(source.rpartition(".")[2], 1)  # v and up are the last rows
    return source in quantized and weight.shape[0] == parts * columns.pop()


def smoothquant_factors(weights: list[torch.Tensor], statistics: InputStatistics, strength: float) -> torch.Tensor:
    """SmoothQuant (Xiao et al. 2211.10438, eq. 4): max|x|^a / max|w|^(1-a) for each input column (columns,)."""
    of_weights = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    factors = statistics.largest.clamp(min=1e-5) ** strength / of_weights.clamp(min=1e-5) ** (1 - strength)
    return torch.where(statistics.largest > 0, factors, torch.ones_like(factors))


def awq_factors(
    weights: Mapping[str, torch.Tensor], statistics: InputStatistics, group_size: int | None, rounder: Rounder
) -> torch.Tensor:
    """AWQ (Lin et al. 2306.00978): the factors (columns,) that lose least among powers of the inputs' magnitude.

    A loss is the energy that rounding adds to the modules' outputs, tr(E H E^T) for the error E of the weight and the
    inputs' second moment H: over all calibration tokens, and without running the model again for each candidate.
    """
    of_inputs = statistics.mean_magnitude.clamp(min=1e-6)
    of_weights = _relative_magnitude(list(weights.values()), group_size)
    stride = -(-max(map(len, weights.values())) // ROWS)
    some = {name: weight[::stride] for name, weight in weights.items()}
    best, least = torch.ones_like(of_inputs), float("inf")
    for step in range(GRID + 1):
        ratio = step / GRID
        factors = (of_inputs**ratio / (of_weights ** (1 - ratio) + 1e-4)).clamp(min=1e-4)
        factors = factors / (factors.max() * factors.min()).sqrt() if step else torch.ones_like(factors)
        loss = sum(output_loss(rounder(w * factors, name) / factors - w, statistics) for name, w in some.items())
        if loss < least:
            best, least = factors, loss
    return best


def output_loss(error: torch.Tensor, statistics: InputStatistics) -> float:
    """tr(E H E^T) for a weight's error E (rows, columns); to three digits, which is enough to choose by."""
    with bfloat16_products():
        return float(((error @ statistics.hessian) * error).sum())


def _relative_magnitude(weights: list[torch.Tensor], group_size: int | None) -> torch.Tensor:
    """Mean over all rows of each column's magnitude, relative to the largest of its group (columns,)."""
    rows = torch.cat(weights).abs()
    groups = rows.reshape(-1, group_size or rows.shape[1])
    return (groups / (groups.amax(dim=1, keepdim=True) + 1e-6)).view_as(rows).mean(dim=0)


def clipped_scales(weight: torch.Tensor, scales_at: Callable[[float], Scales], statistics: InputStatistics) -> Scales:
    """Among scales for shrunken ranges, for each group those whose part of the modules' outputs loses the least energy.

    That is e H e^T for the error e of a row's group and the second moment H of the inputs it meets. Clipping moves a
    group's large weights the same way, so that what inputs have in common, which the diagonal of H leaves out, counts.
    """
    best = scales_at(1.0)
    moments = _diagonal_blocks(statistics.hessian, weight.shape[1] // best.scale.shape[1])
    least = _lost_by_group(weight, best, moments)
    for shrink in SHRINKS:
        scales = scales_at(shrink)
        loss = _lost_by_group(weight, scales, moments)
        better = loss < least
        least = torch.where(better, loss, least)
        zero = None if best.zero is None or scales.zero is None else torch.where(better, scales.zero, best.zero)
        best = Scales(best.numbers, best.group_size, torch.where(better, scales.scale, best.scale), zero, best.tensor)
    return best


def _lost_by_group(weight: torch.Tensor, scales: Scales, moments: torch.Tensor) -> torch.Tensor:
    """e H e^T (rows, groups), to three digits."""
    error = rounding.dequantize(rounding.quantize(weight, scales), scales) - weight
    by_group = error.view(len(weight), *moments.shape[:2]).transpose(0, 1)  # (groups, rows, columns of a group)
    with bfloat16_products():
        return ((by_group @ moments) * by_group).sum(dim=-1).T


def _diagonal_blocks(matrix: torch.Tensor, size: int) -> torch.Tensor:
    """(columns, columns) → (columns / size, size, size)."""
    blocks = len(matrix) // size
    return matrix.view(blocks, size, blocks, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
