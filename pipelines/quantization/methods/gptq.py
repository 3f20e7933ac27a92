"""GPTQ (Frantar et al. 2210.17323): rounding column by column, each error made good by the columns to come."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from pipelines.formats.description import Numbers, Scales
from pipelines.quantization.methods.clipping import clip_few_bits
from pipelines.quantization.methods.interface import CalibratedMethod
from pipelines.quantization.methods.smoothquant import smoothquant
from pipelines.quantization.methods.statistics import InputStatistics
from pipelines.recipe.methods import Gptq

LEAF = 16
"""Columns rounded one after the other before their errors are carried on in one matrix product."""


def gptq(settings: Gptq) -> CalibratedMethod:
    """Return the method that clips and rounds by `round_weight`, after SmoothQuant where the recipe asks for it."""

    def round_by_moments(weight: torch.Tensor, scales: Scales, inputs: InputStatistics) -> torch.Tensor:
        return round_weight(weight, scales, inputs.hessian, settings.dampening)

    return CalibratedMethod(
        measures_moments=True,
        follows_rounding=True,
        smoothing=None if settings.smoothquant is None else smoothquant(settings.smoothquant),
        choose_scales=clip_few_bits,
        round=round_by_moments,
    )


def round_weight(weight: torch.Tensor, scales: Scales, hessian: torch.Tensor, dampening: float) -> torch.Tensor:
    """Return the codes of `weight` (rows, columns), float32, for inputs of second moment `hessian` (columns, columns).

    `dampening` is the fraction of the moment's mean diagonal that is added to its diagonal.

    Columns are taken in the order of their inputs' energy (`actorder: weight`): the scales stay where they are, only
    the order of rounding differs, so that runtimes see nothing of it.
    """
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    carry = _inverse_factor(hessian[order[:, None], order], dampening)
    state = _State(weight.float(), scales, order, carry)
    state.solve(0, weight.shape[1])
    codes = torch.empty_like(state.units)
    codes[order] = state.units
    return scales.numbers.element.encode(codes.T.contiguous())


class _State:
    """A weight on its way to codes, (columns, rows) in the order of rounding: a column of the weight is contiguous."""

    def __init__(self, weight: torch.Tensor, scales: Scales, order: torch.Tensor, carry: torch.Tensor) -> None:
        self.numbers = scales.numbers
        self.weight = weight.T[order].contiguous()
        self.units = torch.empty_like(self.weight)
        self.error = torch.empty_like(self.weight)
        self.carry = carry
        """Upper factor of the inverse Hessian, each row over its diagonal."""
        columns, rows = self.weight.shape
        size = scales.group_size or columns
        self.group = (order // size).tolist()
        repeat = size if scales.numbers.strategy == "block" else 1
        self.step = scales.step.T.repeat_interleave(repeat, dim=1).contiguous()
        self.zero = None if scales.zero is None else scales.zero.T.contiguous()
        assert self.step.shape[1] == rows

    def solve(self, first: int, last: int) -> None:
        """Round the columns from `first` to `last`: by halves, so that most of the work is in large products."""
        if last - first <= LEAF:
            return self._leaf(first, last)
        middle = first + max(LEAF, (last - first) // 2 // LEAF * LEAF)
        self.solve(first, middle)
        self.weight[middle:last].addmm_(self.carry[first:middle, middle:last].T, self.error[first:middle], alpha=-1)
        self.solve(middle, last)

    def _leaf(self, first: int, last: int) -> None:
        """Round the columns from `first` to `last` one after the other."""
        group = self.group[first:last]
        leaf = _Leaf(
            weight=self.weight[first:last],
            step=[self.step[number] for number in group],
            zero=None if self.zero is None else [self.zero[number] for number in group],
            carry=self.carry[first:last, first:last],
            units=self.units[first:last],
            error=self.error[first:last],
        )
        if self.weight.is_cuda and last - first == LEAF:
            _graph(self.weight.shape[1], self.zero is not None, self.numbers, self.weight.device).run(leaf)
        else:
            _round_columns(leaf, self.numbers)


class _Leaf(NamedTuple):
    """Columns that are rounded one after the other: (columns, rows), but for `carry`, which is (columns, columns)."""

    weight: torch.Tensor
    step: Sequence[torch.Tensor]
    zero: Sequence[torch.Tensor] | None
    carry: torch.Tensor
    units: torch.Tensor
    error: torch.Tensor


def _round_columns(leaf: _Leaf, numbers: Numbers) -> None:
    """Fill the units and errors of a leaf's weight, which it changes."""
    weight, step, zero, carry, units, error = leaf
    for column in range(len(weight)):
        value = torch.div(weight[column], step[column], out=units[column])
        if zero is None:
            snapped = numbers.element.snap(value)
            rounded = value if snapped is value else value.copy_(snapped)
        else:
            rounded = numbers.element.snap(value.add_(zero[column])) - zero[column]
        torch.addcmul(weight[column], rounded, step[column], value=-1, out=error[column])
        if column + 1 < len(weight):
            weight[column + 1 :].addr_(carry[column, column + 1 :], error[column], alpha=-1)


class _Graph:
    """The rounding of `LEAF` columns as a CUDA graph: a GPU is done with a column before Python has asked for the next,
    and so it asks for all of them at once."""

    def __init__(self, rows: int, with_zero: bool, numbers: Numbers, device: torch.device) -> None:
        self._weight, self._step, self._zero, self._units, self._error = torch.ones(5, LEAF, rows, device=device)
        self._carry = torch.zeros(LEAF, LEAF, device=device)
        zero = self._zero if with_zero else None
        own = _Leaf(self._weight, self._step, zero, self._carry, self._units, self._error)
        _round_columns(own, numbers)  # what is set up at first use is no part of a graph
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            _round_columns(own, numbers)

    def run(self, leaf: _Leaf) -> None:
        """Fill the units and errors of a leaf's weight, and leave the weight alone."""
        self._weight.copy_(leaf.weight)
        self._carry.copy_(leaf.carry)
        torch.stack([*leaf.step], out=self._step)
        if leaf.zero is not None:
            torch.stack([*leaf.zero], out=self._zero)
        self._graph.replay()
        leaf.units.copy_(self._units)
        leaf.error.copy_(self._error)


_graph = functools.lru_cache(maxsize=8)(_Graph)
"""Function that returns the graph for a height of weights, of which a model has few."""


def _inverse_factor(hessian: torch.Tensor, dampening: float) -> torch.Tensor:
    """Return the upper triangular U with the inverse Hessian = U^T U, each row divided by its diagonal element.

    By one factorization from the far end: with H = R R^T, R upper triangular, U is R^-1. A moment that is not positive
    definite then is dampened more; an input that was always zero has no part in the others' errors. For wide inputs
    this is what takes most memory: four matrices of that size at most, `hessian` among them.
    """
    diagonal = hessian.diagonal()
    mean = diagonal[diagonal > 0].mean() if (diagonal > 0).any() else torch.ones((), device=hessian.device)
    for _ in range(8):
        damped = hessian.flip(0, 1)
        damped.diagonal().add_(dampening * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            break
        dampening *= 10
    del damped
    factor = factor.flip(0, 1)
    inverse = torch.eye(len(factor), device=factor.device)
    torch.linalg.solve_triangular(factor, inverse, upper=True, out=inverse)
    return inverse.div_(inverse.diagonal().clone()[:, None])
