"""The model that transformers makes of a checkpoint: its class built on the meta device, without weights, and told the
names and shapes that the headers give.

Headers alone do not say which module holds a tensor, which of them are linear and called as such, which tensors a
model lacks, and whether its head is the embedding by default. What was found is kept, so that a plan imports
transformers once for each config.
"""

import importlib.metadata
import re
from collections.abc import Iterator
from typing import Any, Literal

from pipelines.checkpoint.architecture import Family, load_config, load_on_meta, model_class, quiet
from pipelines.checkpoint.headers import FLOATING, Checkpoint, TensorInfo
from pipelines.checkpoint.names import ONE_BY_ONE
from pipelines.checkpoint.safety import entries
from pipelines.core.cache import Result, keep
from pipelines.core.errors import Problem, bad_input, brief, refuse
from pipelines.core.strict_yaml import Frozen
from pipelines.planning import trial
from pipelines.planning.trial import Trial
from pipelines.runtimes.module_names import separable_experts

Kind = Literal["linear", "transposed", "experts", "other"]
"""Kind of module that holds a tensor: a linear module; transformers' Conv1D, which holds a weight transposed; all
experts of a layer in one tensor; anything else."""
COUNTS = re.compile(r"(num|n)_?\w*(layers?|blocks?)\w*|n_layer|depth|depths")
"""Pattern of the keys of a config that say how many layers there are: each holds at least one tensor."""


class Place(Frozen):
    """The place in the model that a tensor of the checkpoint goes to."""

    module: str
    """Name of the module of the model that holds the tensor."""
    kind: Kind


class Anatomy(Result):
    """The findings on a checkpoint as transformers reads it."""

    family: Family
    architecture: str
    """Name of the class of transformers."""
    places: dict[str, Place]
    """Tensor of the checkpoint → its place in the model; without those that no module takes."""
    missing: tuple[str, ...]
    """Tensors of the model that the checkpoint does not have, and that are not tied to one that it has."""
    unexpected: tuple[str, ...]
    """Tensors of the checkpoint that the model does not read."""
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """Name, shape in the checkpoint and shape in the model of each tensor whose shapes differ."""
    integers: tuple[str, ...]
    """Tensors of the checkpoint that hold whole numbers, where the model computes with others."""
    trial: Trial
    """Findings on the way of a text through the model."""
    inseparable: tuple[str, ...]
    """Modules that hold all experts of a layer and cannot be made a linear module for each expert, as evaluation needs
    them."""
    head: str
    """Name of the module that makes logits of hidden states; empty where the class does not say which."""
    head_is_embedding: bool


def examine(checkpoint: Checkpoint) -> Anatomy:
    """Return what transformers makes of `checkpoint`, or what was found before.

    Raises:
        BadInput: its config is of no language model that transformers knows, or makes none.
    """
    inputs = {
        "config": checkpoint.config,
        "tensors": [[tensor.name, tensor.dtype, tensor.shape] for tensor in checkpoint.tensors],
        "transformers": importlib.metadata.version("transformers"),
    }
    return keep("anatomy", inputs, Anatomy, lambda _: _examine(checkpoint))


def check_complete(checkpoint: Checkpoint, anatomy: Anatomy) -> Iterator[Problem]:
    """Yield what is wrong with the tensors of a checkpoint: missing, of another shape, or read by nobody."""
    where, who = str(checkpoint.folder), f"a {anatomy.architecture}"
    if anatomy.missing:
        remedy = "copy the checkpoint again"
        if any("head" in name for name in anatomy.missing):
            remedy += '; if its head is the embedding, set "tie_word_embeddings": true in config.json'
        yield Problem(where, f"lacks {_named(anatomy.missing)} of {who}, which would be made up at random", remedy)
    for name, stored, wanted in anatomy.mismatched[:3]:
        what = f"tensor {name} is {list(stored)}, and {list(wanted)} in {who} of its config"
        yield Problem(where, what, "give the config.json that belongs to these weights")
    if anatomy.integers:
        kind = next(tensor.dtype for tensor in checkpoint.tensors if tensor.name == anatomy.integers[0])
        what = f"holds {_named(anatomy.integers)} as {kind}, and {who} computes with floating-point numbers there"
        yield Problem(where, what, "give a checkpoint in BF16, F16 or F32")
    if anatomy.unexpected:
        what = f"holds {_named(anatomy.unexpected)} that {who} does not read"
        yield Problem(where, what, "remove them from the weights, or name the model's real class in config.json")


def _named(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} tensors, like {names[0]},"


def _examine(checkpoint: Checkpoint) -> dict[str, Any]:
    refuse(_endless(checkpoint))
    config = load_config(checkpoint.folder)
    family, chosen = model_class(config, checkpoint.folder)
    try:
        with quiet():
            tensors = {tensor.name: (tensor.dtype, tensor.shape) for tensor in checkpoint.tensors}
            model, info = load_on_meta(chosen, config, tensors)
            places = dict(_places(checkpoint, model))
            integers = tuple(_integers(checkpoint, places, model))
            head, head_is_embedding = _head(model)
            inseparable = tuple(_inseparable(places, model))
            tried = trial.run(model)
    except ImportError as error:  # transformers names the package, and needs it for a part of the model
        what = f"transformers cannot make a {chosen.__name__} of it: {brief(error)}"
        package = re.search(r"requires the (\S+) library", str(error))
        remedy = f"pip install {package[1]}" if package else "install what it names"
        raise bad_input(checkpoint.folder / "config.json", what, f"{remedy}, where quantgate is installed") from None
    except Exception as error:  # a config whose numbers do not fit together fails in as many ways as there are models
        what = f"transformers cannot make a {chosen.__name__} of it: {brief(error)}"
        remedy = "give the config.json that belongs to these weights"
        raise bad_input(checkpoint.folder / "config.json", what, remedy) from None
    return {
        "family": family,
        "architecture": chosen.__name__,
        "places": places,
        "missing": tuple(sorted(info["missing_keys"])),
        "unexpected": tuple(sorted(info["unexpected_keys"])),
        "mismatched": tuple((name, tuple(stored), tuple(wanted)) for name, stored, wanted in info["mismatched_keys"]),
        "integers": integers,
        "trial": tried,
        "inseparable": inseparable,
        "head": head,
        "head_is_embedding": head_is_embedding,
    }


def _endless(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Yield numbers of layers that cannot be: building so many modules would not end."""
    most = len(checkpoint.tensors)
    for key, value in entries(checkpoint.config):
        if COUNTS.fullmatch(key) and isinstance(value, int) and not isinstance(value, bool) and value > most:
            what = f"says {key} {value}, and its weights have {most} tensors"
            yield Problem(str(checkpoint.folder / "config.json"), what, "give the config that belongs to these weights")


def _places(checkpoint: Checkpoint, model: Any) -> Iterator[tuple[str, Place]]:
    """Yield each tensor of the checkpoint that the model has, and where it goes, by transformers' own renaming."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    parameters, modules = model.state_dict(), dict(model.named_modules())
    for tensor in checkpoint.tensors:
        name, _ = rename_source_key(tensor.name, renamings, converters, model.base_model_prefix, parameters)
        if name in parameters:
            holder = name.rpartition(".")[0]
            yield tensor.name, Place(module=holder, kind=_kind(modules[holder], name, parameters[name], tensor))


def _kind(module: Any, name: str, parameter: Any, tensor: TensorInfo) -> Kind:
    import torch
    from transformers.pytorch_utils import Conv1D

    if not name.endswith("weight") and parameter.ndim == 3:
        return "experts"
    if not name.endswith(".weight") or parameter.ndim != 2:
        return "other"
    if isinstance(module, Conv1D):
        return "transposed"
    alike = tuple(parameter.shape) == tensor.shape  # else the weights of several modules become one while they load
    return "linear" if isinstance(module, torch.nn.Linear) and alike else "other"


def _inseparable(places: dict[str, Place], model: Any) -> list[str]:
    """Return the modules that hold experts which the checkpoint stores one by one, and cannot be taken apart."""
    together = {place.module for name, place in places.items() if place.kind == "experts" and ONE_BY_ONE.match(name)}
    return sorted(together - separable_experts(model)) if together else []


def _integers(checkpoint: Checkpoint, places: dict[str, Place], model: Any) -> Iterator[str]:
    """Yield the tensors that the checkpoint stores as whole numbers, and that the model has as floating-point ones."""
    own = model.state_dict()
    for tensor in checkpoint.tensors:
        if tensor.dtype not in FLOATING and tensor.name in places:
            name = f"{places[tensor.name].module}.{tensor.name.rpartition('.')[2]}"
            if name in own and own[name].is_floating_point():
                yield tensor.name


def _head(model: Any) -> tuple[str, bool]:
    """Return the name of the module that makes logits, and whether its weight is the embedding's."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    name = next((name for name, module in model.named_modules() if module is head), "")
    return name, bool(name) and head.weight is getattr(embedding, "weight", None)
