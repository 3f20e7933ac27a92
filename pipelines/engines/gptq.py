"""GPTQ (Frantar et al. 2210.17323): round a weight column by column, each error made good by the columns to come."""

import torch

from pipelines import rounding

LEAF = 16
"""Columns rounded one after the other before their errors are carried on in one matrix product."""


def quantize(weight: torch.Tensor, scales: rounding.Scales, hessian: torch.Tensor, dampening: float) -> torch.Tensor:
    """The codes of `weight` (rows, columns) in float32, for inputs whose second moment is `hessian` (columns, columns).

    Columns are taken in the order of their inputs' energy (`actorder: weight`): the scales stay where they are, only
    the order of rounding differs, so that runtimes see nothing of it.
    """
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    carry = _inverse_factor(hessian[order][:, order], dampening)
    state = _State(weight.float(), scales, order, carry)
    state.solve(0, weight.shape[1])
    codes = torch.empty_like(state.units)
    codes[order] = state.units
    return rounding.encode(codes.T.contiguous(), scales.numbers)


class _State:
    """Everything is (columns, rows), in the order of rounding, so that a column of the weight is contiguous."""

    def __init__(self, weight: torch.Tensor, scales: rounding.Scales, order: torch.Tensor, carry: torch.Tensor) -> None:
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
        for column in range(first, last):
            weight, step = self.weight[column], self.step[self.group[column]]
            units = weight / step
            if self.zero is None:
                rounded = units = rounding.snap(units, self.numbers)
            else:
                zero = self.zero[self.group[column]]
                units = rounding.snap(units.add_(zero), self.numbers)
                rounded = units - zero
            self.units[column] = units
            error = self.error[column]
            error.copy_(weight).addcmul_(rounded, step, value=-1)
            if column + 1 < last:
                self.weight[column + 1 : last].addr_(self.carry[column, column + 1 : last], error, alpha=-1)


def _inverse_factor(hessian: torch.Tensor, dampening: float) -> torch.Tensor:
    """Upper triangular U with the inverse Hessian = U^T U, each row divided by its diagonal element.

    By one factorization from the far end: with H = R R^T, R upper triangular, U is R^-1. A moment that is not positive
    definite then is dampened more; an input that was always zero has no part in the others' errors.
    """
    diagonal = hessian.diagonal()
    mean = diagonal[diagonal > 0].mean() if (diagonal > 0).any() else torch.ones((), device=hessian.device)
    for _ in range(8):
        damped = hessian + dampening * mean * torch.eye(len(hessian), device=hessian.device)
        factor, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            break
        dampening *= 10
    upper = factor.flip(0, 1)
    inverse = torch.linalg.solve_triangular(upper, torch.eye(len(upper), device=upper.device), upper=True)
    scaled: torch.Tensor = inverse / inverse.diagonal()[:, None]
    return scaled
