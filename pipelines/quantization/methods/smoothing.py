"""Moving magnitude between a layer's weights and what comes before them, so that both are easier to round.

The input columns of some linear modules are multiplied, and the norm or the linear module that writes this input is
divided, by the same positive factors: in exact arithmetic the model does not change. Which module feeds which in an
architecture is llmcompressor's knowledge (its AWQ mappings).
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.quantization.methods.statistics import InputStatistics
from pipelines.runtimes.module_names import quietly

TOLERANCE = 0.03
"""Share of what a layer adds to its input that smoothing may change: rounding, where a norm has an offset."""


@dataclass(frozen=True)
class Link:
    """A module that writes what others read, each by its name in the model."""

    source: str
    """Norm, or linear module of which the last output rows are meant."""
    readers: tuple[str, ...]
    """Linear modules whose input columns are multiplied."""


Rounder = Callable[[torch.Tensor, str], torch.Tensor]
"""Function from a weight (rows, columns) in float32 and its module's name to what it would be, rounded to nearest."""

FindFactors = Callable[[Mapping[str, torch.Tensor], InputStatistics, int | None, Rounder], torch.Tensor]
"""Function that returns positive factors (columns,) in float32 for the modules that read one input: from module →
weight (rows, columns) in float32, the input's statistics, the modules' group size, and rounding to nearest."""


@dataclass(frozen=True)
class Smoothing:
    """A way to choose factors, and where they may be used."""

    find_factors: FindFactors
    norms_only: bool
    """Whether only norms are divided, and no linear modules."""


def find_links(model: Any, names: Iterable[str], quantized: Mapping[str, torch.Tensor]) -> list[Link]:
    """Return the links among modules `names` of one decoder layer whose readers are all in `quantized` (name → weight).

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
    """Tell whether `source` writes as many features as each of `readers` reads."""
    columns = {quantized[name].shape[1] for name in readers}
    weight = getattr(model.get_submodule(source), "weight", None)  # an activation function has none
    if weight is None or len(columns) != 1:
        return False
    if weight.ndim == 1:
        return weight.shape[0] in columns and not any(".experts." in name for name in readers)
    parts = {"qkv_proj": 3, "gate_up_proj": 2}.get(source.rpartition(".")[2], 1)  # v and up are the last rows
    return source in quantized and weight.shape[0] == parts * columns.pop()


def harmless_links(
    model: Any, links: list[Link], hidden: torch.Tensor, run_layer: Callable[[], torch.Tensor]
) -> list[Link]:
    """Return the links along which smoothing leaves the function of their decoder layer alone.

    `run_layer` returns what the layer makes of `hidden`. Tried out, because there are more architectures than tables
    know: one reads a norm twice, another bends what a linear module writes. All links at once, and one by one only if
    that fails.
    """
    before = run_layer()

    def are_harmless(some: list[Link]) -> bool:
        with _doubled(model, some):
            after = run_layer()
        return bool((after - before).float().norm() <= TOLERANCE * (before - hidden).float().norm())

    return links if are_harmless(links) else [link for link in links if are_harmless([link])]


@contextlib.contextmanager
def _doubled(model: Any, links: list[Link]) -> Iterator[None]:
    """Multiply every other column along `links` by 2 in the readers, and divide it by 2 in the source: no bit of a
    plain weight is lost."""
    modules = {name: model.get_submodule(name) for link in links for name in (link.source, *link.readers)}
    saved = {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in modules.items()}
    for link in links:
        columns = modules[link.readers[0]].weight.shape[1]
        factors = 1.0 + torch.arange(columns, device=modules[link.source].weight.device) % 2
        divide_output(modules[link.source], factors, modules[link.source].weight.dtype)
        for name in link.readers:
            modules[name].weight.mul_(factors)
    yield
    for name, module in modules.items():
        module.load_state_dict(saved[name])


def divide_output(module: Any, factors: torch.Tensor, stored: torch.dtype) -> torch.Tensor:
    """Divide what a norm, or a linear module in its last rows, writes by `factors`, and return the divisors it got.

    There is one divisor for each row, after rounding to the dtype that the module is `stored` in: 1 where so little
    would be left of a norm's weight that it would round to nothing.
    """
    weight = module.weight
    rows = torch.ones(len(weight), device=factors.device)
    rows[-len(factors) :] = factors
    if weight.ndim == 2:
        weight.copy_(weight.float() / rows[:, None])
    else:
        offset = _offset(module)
        before = weight.float() + offset
        divided = (before / rows - offset).to(stored).to(weight.dtype)
        after = divided.float() + offset
        rows = torch.where(after == 0, 1.0, before / after)
        weight.copy_(torch.where(after == 0, weight, divided))
    if getattr(module, "bias", None) is not None:
        module.bias.copy_((module.bias.float() / rows).to(stored))
    return rows


def _offset(norm: Any) -> float:
    """Return what a norm adds to its weight before it multiplies by it: 1 in Gemma, whose weight of zero is no zero."""
    nothing = {name: torch.zeros_like(parameter) for name, parameter in norm.named_parameters()}
    signs = 1 - 2 * (torch.arange(len(norm.weight), device=norm.weight.device) % 2)
    return 1.0 if torch.func.functional_call(norm, nothing, (signs.to(norm.weight.dtype),)).any() else 0.0
