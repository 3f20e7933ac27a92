"""The class that transformers has for a checkpoint's config, built on the meta device, where nothing has weights."""

import contextlib
import copy
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pipelines.checkpoint.dtypes import TORCH_DTYPES
from pipelines.checkpoint.headers import Layout
from pipelines.core.errors import bad_input, brief

Family = Literal["AutoModelForCausalLM", "AutoModelForImageTextToText"]
FAMILIES: tuple[Family, ...] = ("AutoModelForCausalLM", "AutoModelForImageTextToText")
"""Classes of transformers that load a language model, in the order in which they are asked."""


def load_config(folder: Path) -> Any:
    """Return transformers' config of the checkpoint in `folder`.

    Raises:
        BadInput: it makes none of `config.json`.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of transformers, of its checks of types, of what computes with wrong values
        what = f"transformers makes no config of it: {brief(error)}"
        raise bad_input(folder / "config.json", what, "give the config.json that belongs to these weights") from None


def model_class(config: Any, folder: Path) -> tuple[Family, Any]:
    """Return the auto class that loads a language model of `config`, and the class of the model.

    Raises:
        BadInput: there is none.
    """
    import transformers

    mappings = (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    for family, mapping in zip(FAMILIES, mappings, strict=True):
        if type(config) in mapping:
            found = mapping[type(config)]
            return family, found[0] if isinstance(found, tuple | list) else found
    what = f"is of model type {config.model_type}, of which transformers has no language model"
    remedy = "give a causal language model, or one that sees images and writes text"
    raise bad_input(folder / "config.json", what, remedy)


def auto_class(config: Any, folder: Path) -> Any:
    """Return the auto class of transformers that loads a language model of `config`.

    Raises:
        BadInput: there is none.
    """
    import transformers

    return getattr(transformers, model_class(config, folder)[0])


def load_on_meta(chosen: Any, config: Any, tensors: Layout) -> tuple[Any, dict[str, Any]]:
    """Return the model of class `chosen` without weights, and what transformers says of the names and shapes that it
    was given."""
    import torch

    state = {
        name: torch.empty(shape, dtype=getattr(torch, TORCH_DTYPES[dtype]), device="meta")
        for name, (dtype, shape) in tensors.items()
    }
    loaded: tuple[Any, dict[str, Any]] = chosen.from_pretrained(
        None,
        config=copy.deepcopy(config),
        state_dict=state,
        device_map={"": "meta"},
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    return loaded


def addresses(model: Any, modules: Iterable[str]) -> dict[str, str]:
    """Return what a loaded `model` calls `modules` of its checkpoint, by transformers' own renaming; those that it does
    not have keep their names."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)]
    parameters, prefix = model.state_dict(), model.base_model_prefix
    return {
        name: rename_source_key(f"{name}.weight", renamings, [], prefix, parameters)[0].removesuffix(".weight")
        for name in modules
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep to themselves what transformers and compressed-tensors report of loading, and their bars."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)
