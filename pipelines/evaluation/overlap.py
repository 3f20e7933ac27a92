"""How much of what the gate asks was already in the calibration text: measured, so that it can be reported.

A document overlaps when it shares 13 consecutive words with the calibration text (the rule of GPT-3, 2005.14165).
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipelines.calibration.stage import CalibrationTokens, read_tokens
from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.tokenizer import load_tokenizer
from pipelines.core.cache import Result, keep
from pipelines.recipe.suite import Suite

WORDS = 13


class Overlap(Result):
    """Documents of a suite that share text with a calibration set."""

    suite: str
    documents: int
    overlapping: int


def measure_overlap(tokens: CalibrationTokens, checkpoint: Checkpoint, suite: Suite) -> Overlap:
    """Count the documents of `suite` that overlap with the calibration text."""

    def make(_: Path) -> dict[str, Any]:
        from pipelines.evaluation.tasks import prompts

        tokenizer = load_tokenizer(checkpoint)
        seen: set[int] = set()
        for sample in read_tokens(tokens):
            seen |= _ngrams(tokenizer.decode(sample, skip_special_tokens=True))
        texts = prompts(suite)
        return {
            "suite": suite.name,
            "documents": len(texts),
            "overlapping": sum(not seen.isdisjoint(_ngrams(text)) for text in texts),
        }

    return keep("overlap", {"tokens": tokens.digest, "suite": suite.model_dump()}, Overlap, make)


def _ngrams(text: str) -> set[int]:
    words: Iterable[str] = re.findall(r"\w+", text.lower())
    listed = list(words)
    return {hash(tuple(listed[i : i + WORDS])) for i in range(len(listed) - WORDS + 1)}
