"""One decoder layer while it is quantized."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.planning.plan import Module
from pipelines.quantization.methods.statistics import InputStatistics


@dataclass(frozen=True)
class Layer:
    """What is known of a decoder layer's quantized modules, by their names in the checkpoint.

    Weights and statistics are too large to be copied: what smooths the layer changes them here.
    """

    number: int
    modules: dict[str, Module]
    linears: dict[str, Any]
    """Linear modules of the model."""
    weights: dict[str, torch.Tensor]
    """Weights (rows, columns) in float32, and no part of the model."""
    inputs: dict[str, InputStatistics]
    """Statistics of what modules read; the same object where that is the same."""

    def multiply_columns(self, names: Iterable[str], factors: torch.Tensor) -> None:
        """Multiply the columns of these modules' weights by `factors` (columns,), as if their inputs were divided."""
        for name in names:
            self.weights[name].mul_(factors)
        for shared in {id(self.inputs[name]): self.inputs[name] for name in names}.values():
            shared.divide(factors)

    def groups(self) -> list[list[Module]]:
        """Return the modules in groups that read the same input and get the same scheme."""
        groups: dict[tuple[object, ...], list[Module]] = {}
        for name, module in self.modules.items():
            groups.setdefault((id(self.inputs[name]), module.scheme, module.group_size), []).append(module)
        return list(groups.values())
