"""The replacements in lm-eval and the libraries below it while they work for an evaluation, each with its cause."""

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

LOGGERS = ("lm-eval", "lm_eval", "transformers", "datasets", "accelerate")
"""Names of the loggers that tell nothing but errors meanwhile."""


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Run what is inside with lm-eval patched and the libraries silent but for errors and bars of what takes long.

    Everything is as before when it ends; one may be inside of another.
    """
    import datasets
    import lm_eval.api.task
    import lm_eval.evaluator
    import lm_eval.utils

    with contextlib.ExitStack() as stack:
        # It asks git about the current folder, which is none of ours, and complains aloud where that is no repository.
        stack.enter_context(_replaced(lm_eval.evaluator, "get_git_commit_hash", lambda: None))
        # lm-eval compiles the same few templates anew for every document.
        stack.enter_context(_replaced(lm_eval.utils.env, "from_string", _compiled))
        # The bar of writing questions begins anew for each block of documents.
        stack.enter_context(_replaced(lm_eval.api.task, "tqdm", _without_bar))
        # What they remark on while they load and run says nothing of a model's scores.
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        for name in LOGGERS:
            stack.enter_context(_only_errors(logging.getLogger(name)))
        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        yield


@functools.cache
def _compiled(template: str) -> Any:
    """Return lm-eval's `template`, compiled once."""
    from lm_eval.utils import env

    return type(env).from_string(env, template)


def _without_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    """Return `items` as they are, in the place of tqdm."""
    return items


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give `owner` the attribute `name` for a while, and take it away again where it had none of its own."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextlib.contextmanager
def _only_errors(logger: logging.Logger) -> Iterator[None]:
    """Let `logger` tell nothing but errors for a while."""
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
