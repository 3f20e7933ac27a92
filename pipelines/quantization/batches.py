"""Calibration samples put together, so that a model reads several at once."""

from collections.abc import Iterator

import torch

BATCH_TOKENS = 4096
"""Most tokens that pass through a layer at a time."""


def equal_batches(samples: list[list[int]]) -> Iterator[torch.Tensor]:
    """Yield samples of equal length together (samples, tokens), up to `BATCH_TOKENS` at a time, the shortest first."""
    by_length: dict[int, list[list[int]]] = {}
    for sample in samples:
        by_length.setdefault(len(sample), []).append(sample)
    for length, equal in sorted(by_length.items()):
        count = max(1, BATCH_TOKENS // length)
        for first in range(0, len(equal), count):
            yield torch.tensor(equal[first : first + count])
