"""The overlap of what the gate asks with the calibration text, measured so that it can be reported.

A document overlaps when it shares 13 consecutive words with the calibration text (the rule of GPT-3, 2005.14165).
"""

import re
from pathlib import Path
from typing import Any

from pipelines.calibration.tokens import CalibrationTokens, read_tokens
from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.tokenizer import load_tokenizer
from pipelines.core.cache import Result, keep
from pipelines.recipe.suite import Suite

WORDS = 13
"""Number of consecutive words that make an overlap."""


class Overlap(Result):
    """Numbers of a suite's documents that share text with a calibration set."""

    suite: str
    documents: int
    """Number of all documents of the suite."""
    overlapping: int
    """Number of those that share text."""


def measure_overlap(tokens: CalibrationTokens, checkpoint: Checkpoint, suite: Suite) -> Overlap:
    """Return how many documents of `suite` overlap with the calibration text."""

    def make(_: Path) -> dict[str, Any]:
        from pipelines.evaluation.checks import prompts

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
    """Return hashes, of this process, of all runs of `WORDS` words."""
    words: list[str] = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + WORDS])) for i in range(len(words) - WORDS + 1)}
