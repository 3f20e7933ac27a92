"""The distance of a quantized model from its source on held-out text, which accuracy does not show (docs/gate.md).

As `llama-perplexity --kl-divergence` does it: the text is cut into chunks, the second half of each is scored, so that
every token has half a chunk of context. The models are loaded one after the other; the source's distributions wait in
a file, in 16 bits.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.core import progress
from pipelines.core.bounds import clustered_mean
from pipelines.runtimes.amounts import DISTANCE_CHUNKS, DISTANCE_CONTEXT

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
from pipelines.core.strict_yaml import Frozen


class Distance(Frozen):
    """The distance of an artifact from its source on held-out text, as `llama-perplexity --kl-divergence` tells it."""

    tokens: int
    """Number of scored tokens: those of the second half of each chunk."""
    perplexity_before: float
    perplexity_after: float
    perplexity_ratio: float
    perplexity_ratio_error: float
    """Standard error of the ratio; the fields below that end in `_error` are standard errors, too."""
    divergence: float
    """Mean Kullback-Leibler divergence from the unquantized model's distribution, nats per token."""
    divergence_error: float
    divergence_99: float
    """99th percentile of that divergence, nats per token."""
    same_top: float
    """Share of tokens at which both find the same token likeliest."""
    same_top_error: float


ROWS = 64
"""Number of distributions that are compared at once: they stay in a CPU's cache."""
LEAST = -65504.0
"""Least log-probability that float16 holds. A masked token's is less, and 0 times infinity is no number."""
STRETCH = 51
"""Number of neighbouring tokens that are taken as dependent on each other, as neighbours in a text are."""


def chunks(ids: Sequence[int], most: int | None) -> list[list[int]]:
    """Return `DISTANCE_CHUNKS` pieces of as many tokens; shorter ones for a model whose positions are not as `most`."""
    length = min(DISTANCE_CONTEXT, most or DISTANCE_CONTEXT, len(ids) // DISTANCE_CHUNKS)
    return [list(ids[first : first + length]) for first in range(0, length * DISTANCE_CHUNKS, length)]


def write_logprobs(model: Any, text: Sequence[list[int]], file: Path) -> None:
    """Write the log-probabilities (tokens, vocabulary) of all tokens at each scored place of `text`, as float16."""
    with file.open("wb") as stream:
        for logprobs in progress.track(_logprobs(model, text), "source on held-out text", "piece", len(text)):
            stream.write(logprobs.half().cpu().numpy().tobytes())


def measure_distance(model: Any, text: Sequence[list[int]], file: Path) -> Distance:
    """Return the distance of `model` from the one that wrote `file`, on the same `text`."""
    import numpy as np
    import torch

    scored = [chunk[len(chunk) // 2 + 1 :] for chunk in text]
    before = np.memmap(file, dtype=np.float16, mode="r").reshape(sum(map(len, scored)), -1)
    rows: list[torch.Tensor] = []
    place = 0
    found = progress.track(_logprobs(model, text), "artifact on held-out text", "piece", len(text))
    for targets, after in zip(scored, found, strict=True):
        wanted: Any = torch.tensor(targets, device=after.device)[:, None]
        for some, target in zip(after.split(ROWS), wanted.split(ROWS), strict=True):
            ours = torch.from_numpy(before[place : place + len(some)].astype(np.float32)).to(after.device)
            place += len(some)
            divergence = (ours.exp() * (ours - some)).sum(1)
            same = (ours.argmax(1) == some.argmax(1)).float()
            compared = [ours.gather(1, target)[:, 0], some.gather(1, target)[:, 0], divergence, same]
            rows.append(torch.stack(compared, dim=1))
    return _summary(torch.cat(rows).double().cpu().numpy(), [len(targets) for targets in scored])


def _logprobs(model: Any, text: Sequence[list[int]]) -> Iterator[Any]:
    """Yield each chunk's log-probabilities (scored tokens, vocabulary), float32, of the token after each place."""
    import torch

    for chunk in text:
        kept = len(chunk) - len(chunk) // 2
        with torch.inference_mode():
            ids = torch.tensor([chunk], device=model.device)
            logits = model(ids, use_cache=False, logits_to_keep=kept).logits[0, -kept:-1]  # some give those of all
            yield logits.float().log_softmax(-1).clamp_(min=LEAST)


def _summary(rows: "npt.NDArray[np.float64]", lengths: Sequence[int]) -> Distance:
    """Return the distance that the columns of `rows` make, one row for each scored token.

    The columns are its log-probability before and after, the divergence (all in nats), and whether the likeliest token
    is the same. `lengths` are the numbers of tokens scored in each chunk.
    """
    import numpy as np

    places = [f"{chunk} {place // STRETCH}" for chunk, length in enumerate(lengths) for place in range(length)]
    before, after, divergence, same = (rows[:, column] for column in range(4))
    ratio = clustered_mean((before - after).tolist(), places)
    mean, top = clustered_mean(divergence.tolist(), places), clustered_mean(same.tolist(), places)
    return Distance(
        tokens=len(rows),
        perplexity_before=_exp(-before.mean()),
        perplexity_after=_exp(-after.mean()),
        perplexity_ratio=_exp(ratio.value),
        perplexity_ratio_error=_exp(ratio.value) * math.sqrt(ratio.variance),
        divergence=float(np.maximum(0.0, mean.value)),  # which does not turn what is no number into 0
        divergence_error=math.sqrt(mean.variance),
        divergence_99=float(np.quantile(divergence, 0.99)),
        same_top=top.value,
        same_top_error=math.sqrt(top.variance),
    )


def _exp(nats: float) -> float:
    """Return e to the power of `nats`; infinity where that is no float."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
