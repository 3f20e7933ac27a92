"""The names in a loaded model of the modules that a checkpoint names, and experts made one module each."""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipelines.checkpoint.names import LAYER, NOT_TEXT
from pipelines.core.errors import QuantgateError


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep llmcompressor off standard output and its log off the terminal."""
    from loguru import logger

    with contextlib.redirect_stdout(sys.stderr):
        for package in ("llmcompressor", "compressed_tensors"):
            logger.disable(package)
        yield


EXPERT_NAMES = {"block_sparse_moe": "mlp", "ffn": "mlp", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
"""Part of a name in a checkpoint of Mixtral or DeepSeek → the part that transformers has in the model."""


def linearize_experts(model: Any) -> None:
    """Put linear modules where transformers has one tensor for all experts of a layer."""
    with quietly():
        from llmcompressor.modeling.moe.linearize import linearize_moe

        linearize_moe(model)


def separable_experts(model: Any) -> set[str]:
    """Return the names of the modules that `linearize_experts` would take apart."""
    with quietly():
        from llmcompressor.modeling.moe.linearize import get_non_linearized_moes

        return {name for name, _ in get_non_linearized_moes(model)}


def named_alike(
    names: Iterable[str], among: Iterable[str], addresses: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return each of `names` → itself or its address, if `among` has it, or the only name of the language model there
    that ends alike.

    Raises:
        QuantgateError: `among` has none, or several, for a name.
    """
    known = set(among)
    by_tail: dict[str, list[str]] = {}
    for name in known:
        if not NOT_TEXT.search(name):
            by_tail.setdefault(_tail(name), []).append(name)
    found = {}
    for name in names:
        own = next((one for one in (name, (addresses or {}).get(name)) if one in known), None)
        candidates = [own] if own else by_tail.get(_tail(name), [])
        if len(candidates) != 1:
            raise QuantgateError(f"module {name} of the checkpoint was not found in the model that transformers makes")
        found[name] = candidates[0]
    return found


def _tail(name: str) -> str:
    """Return a module's name from the number of its decoder layer on, as the model spells it."""
    inside = name[found.start() :].lstrip(".") if (found := LAYER.search(name)) else name
    parts = inside.split(".")
    if "experts" in parts:
        parts = [EXPERT_NAMES.get(part, part) for part in parts]
    return ".".join(parts)
