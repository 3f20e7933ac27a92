"""The findings of verification: the error of each layer, and why an artifact is refused."""

import math
from collections.abc import Iterable, Sequence

from pipelines.core.cache import Result
from pipelines.core.errors import QuantgateError
from pipelines.core.strict_yaml import Frozen
from pipelines.quantization.artifact import Artifact
from pipelines.runtimes.distance import Distance
from pipelines.verification.reader import Reader

WORST_LOSS = 1.0
"""Nats per token by which the artifact's loss on held-out text may exceed the source's: far more than any sound scheme
loses, far less than a broken one."""


class LayerError(Frozen):
    """The distance that a layer's weights moved."""

    module: str
    sqnr: float
    """Signal to quantization noise ratio of the dequantized weights, in decibels."""


class CheckedLayer(Frozen):
    """The distance that a layer's weights moved, and the objections to them."""

    error: LayerError
    problems: tuple[str, ...] = ()


class Verification(Result):
    """The results of the checks and measurements; a check that fails raises instead."""

    quantized: int
    kept: int
    dropped: tuple[str, ...]
    """Tensors of the source that the artifact does not have; always empty for the schemes of today."""
    layers: tuple[LayerError, ...]
    bytes_before: int
    bytes_after: int
    """Bytes of all tensors of the artifact."""
    bits_per_weight: float
    loss_before: float
    loss_after: float
    """Losses of source and artifact, in nats per token of held-out text."""
    agreement: float
    """Share of the held-out text's positions at which source and artifact predict the same token."""
    continuation: str
    """Text that the artifact writes after a fixed one, greedily."""
    distance: Distance
    """Distance on held-out text, which losses and agreement are taken from."""
    reader: Reader


def worst_loss(before: float, after: float) -> list[str]:
    """Return a sentence if the artifact lost too much, by losses in nats per token of source and artifact."""
    if after <= before + WORST_LOSS:
        return []
    return [f"its loss is {after:.2f} nats per token, the source's is {before:.2f}: it is broken, not merely quantized"]


def fail(artifact: Artifact, problems: Iterable[str]) -> None:
    """Raise QuantgateError with `problems`, if there are any."""
    if found := [*problems]:
        raise failed(artifact, found)


def layer_error(name: str, signal: float, noise: float) -> LayerError:
    """Return the error of a layer from the sums of squares of its weights, and of what they lost."""
    return LayerError(module=name, sqnr=10 * math.log10(signal / noise) if noise and signal else 999.0)


def failed(artifact: Artifact, problems: Sequence[str]) -> QuantgateError:
    """Return the error that tells of the first problems."""
    listed = "\n".join(f"    {problem}" for problem in problems[:20])
    return QuantgateError(f"verification of {artifact.checkpoint} failed:\n{listed}")
