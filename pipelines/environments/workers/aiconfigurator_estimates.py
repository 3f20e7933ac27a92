"""aiconfigurator's estimates of a served model, for `pipelines.serving.second_opinion`."""

import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

Report = Callable[[int, int, str], None]


def commands(report: Report) -> dict[str, Callable[..., Any]]:
    """Return the requests that it answers: name → function."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)

    def estimate(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return for each of the `points` (arguments of `cli_estimate`) the tokens a second that it comes to, or why it
        comes to none."""
        answers = []
        for number, point in enumerate(points):
            report(number, len(points), "aiconfigurator")
            answers.append(_estimate(point))
        return answers

    return {"estimate": estimate}


def _estimate(point: dict[str, Any]) -> dict[str, Any]:
    from aiconfigurator.cli.api import cli_estimate  # type: ignore[import-not-found]  # of another environment

    try:
        found = cli_estimate(mode="static", **point)
    except Exception as error:  # data that it lacks, a model that it does not know: each as an error of its own kind
        return {"why": (str(error).strip().splitlines() or [type(error).__name__])[0]}
    return {"tokens_per_second": float(found.tokens_per_second)}
