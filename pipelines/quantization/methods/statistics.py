"""Statistics of the inputs of linear modules, measured while calibration tokens pass through them."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class InputStatistics:
    """Statistics of one input that one or several modules read, over all calibration tokens; float32, on its device."""

    hessian: torch.Tensor
    """Second moment, the mean of x x^T: (columns, columns), or (0, 0) where the method does not need it."""
    largest: torch.Tensor
    """Largest magnitude of each column, (columns,)."""
    magnitude: torch.Tensor
    """Sum of magnitudes of each column, (columns,)."""
    tokens: int = 0
    """Number of tokens seen."""

    @property
    def mean_magnitude(self) -> torch.Tensor:
        """Return the mean magnitude of each column, (columns,)."""
        return self.magnitude / max(1, self.tokens)

    def divide(self, factors: torch.Tensor) -> None:
        """Change the statistics to those of the input divided by `factors` (columns,)."""
        self.hessian = self.hessian / factors / factors[:, None]
        self.largest = self.largest / factors
        self.magnitude = self.magnitude / factors


class Collector:
    """Hooks on linear modules that measure what they read; modules that read the same tensor share its statistics."""

    def __init__(self, modules: dict[str, torch.nn.Module], with_hessian: bool) -> None:
        self._with_hessian = with_hessian
        self._seen: list[tuple[str, torch.Tensor]] = []
        self._owner: dict[str, str] = {}
        self._statistics: dict[str, InputStatistics] = {}
        self._hooks = [module.register_forward_pre_hook(self._hook(name)) for name, module in modules.items()]

    def _hook(self, name: str) -> Any:
        def see(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            self._seen.append((name, arguments[0]))  # kept, so that its memory is not reused while the layer runs

        return see

    def after_forward(self) -> None:
        """Measure what the modules read in the forward pass that just ended, and let go of it."""
        owners: dict[tuple[Any, ...], str] = {}
        for name, x in self._seen:
            key = (x.data_ptr(), x.shape, x.stride())
            if key in owners:
                self._owner.setdefault(name, self._owner[owners[key]])
                continue
            owners[key] = name
            owner = self._owner.setdefault(name, name)
            self._measure(owner, x.reshape(-1, x.shape[-1]))
        self._seen.clear()

    def _measure(self, owner: str, x: torch.Tensor) -> None:
        """Add `x` (tokens, columns) to the statistics that module `owner` was the first to read the input of."""
        columns = x.shape[1]
        known = self._statistics.get(owner)
        if known is None:
            size = columns if self._with_hessian else 0
            known = InputStatistics(
                hessian=torch.zeros(size, size, device=x.device),
                largest=torch.zeros(columns, device=x.device),
                magnitude=torch.zeros(columns, device=x.device),
            )
            self._statistics[owner] = known
        if self._with_hessian:
            total = known.tokens + len(x)
            known.hessian.mul_(known.tokens / total).add_(gram(x), alpha=1 / total)
        magnitudes = x.abs()
        known.largest = torch.maximum(known.largest, magnitudes.amax(dim=0).float())
        known.magnitude += magnitudes.sum(dim=0, dtype=torch.float32)
        known.tokens += len(x)

    def close(self) -> dict[str, InputStatistics]:
        """Remove the hooks, and return module → statistics of its input: one object for modules that read the same."""
        for hook in self._hooks:
            hook.remove()
        return {name: self._statistics[owner] for name, owner in self._owner.items()}


def gram(x: torch.Tensor) -> torch.Tensor:
    """Return x^T x (columns, columns) in float32 for x (tokens, columns).

    Products of bfloat16 numbers are exact in float32, so that bfloat16 units may be used on them.
    """
    wide = x.float()
    with bfloat16_products() if x.dtype == torch.bfloat16 else contextlib.nullcontext():
        return wide.T @ wide


@contextlib.contextmanager
def bfloat16_products() -> Iterator[None]:
    """Let float32 matrix products use units that read bfloat16 (CPU) or TF32 (GPU), and add up in float32."""
    backends: Any = torch.backends
    cpu, gpu = backends.mkldnn.matmul.fp32_precision, backends.cuda.matmul.fp32_precision
    backends.mkldnn.matmul.fp32_precision = "bf16"
    backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        backends.mkldnn.matmul.fp32_precision, backends.cuda.matmul.fp32_precision = cpu, gpu
