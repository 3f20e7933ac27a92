"""The model that is calibrated: loaded as its checkpoint stores it, its decoder layers, and the names of its modules.

Quirks of what this rests on, met here and shown to nobody:
- transformers stores a mixture's experts as one tensor, which no hook sees: llmcompressor's linear experts replace it,
  and give every token to every expert while measuring, so that none is left without data.
- llmcompressor logs to what is standard output while it is imported, through loguru.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.checkpoint.names import EXPERTS, LAYER
from pipelines.core.errors import QuantgateError
from pipelines.planning.plan import CheckpointPlan
from pipelines.runtimes.module_names import linearize_experts, named_alike, quietly


@dataclass(frozen=True)
class LoadedModel:
    """A model of transformers, and how the checkpoint's modules are called in it."""

    model: Any
    names: dict[str, str]
    """Quantized or attention module of the checkpoint → its name in the model."""
    layers: list[Any]
    """Decoder layers in order."""

    def module(self, name: str) -> Any:
        """Return the module that the checkpoint calls `name`."""
        return self.model.get_submodule(self.names[name])

    def before_second_layer(self) -> list[torch.Tensor]:
        """Return the parameters that the hidden states of the first decoder layer depend on, its own included: all but
        those of other layers and of a head of its own."""
        inside = {id(parameter) for layer in self.layers for parameter in layer.parameters()}
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        if head is not None and head.weight is not embedding.weight:
            inside |= {id(parameter) for parameter in head.parameters()}
        outside = [parameter for parameter in self.model.parameters() if id(parameter) not in inside]
        return [*outside, *self.layers[0].parameters()]


def load_for_calibration(plan: CheckpointPlan) -> LoadedModel:
    """Load the source of `plan` on the CPU, weights in the dtypes they are stored in, experts as linear modules."""
    import transformers

    chosen = getattr(transformers, plan.family)
    model = chosen.from_pretrained(plan.checkpoint.folder, dtype="auto", trust_remote_code=False).eval()
    if _has_experts(plan):
        linearize_experts(model)
    names = _model_names(plan, model)
    return LoadedModel(model, names, _decoder_layers(model, names))


@contextlib.contextmanager
def every_token_to_every_expert(plan: CheckpointPlan) -> Iterator[None]:
    """Give every token to every expert, where the source of `plan` is a mixture of experts."""
    if not _has_experts(plan):
        yield
        return
    with quietly():
        from llmcompressor.modeling.moe.context import moe_calibration_context
    with moe_calibration_context():
        yield


def _has_experts(plan: CheckpointPlan) -> bool:
    return any(EXPERTS.match(name) for name in plan.quantized)


def _model_names(plan: CheckpointPlan, model: Any) -> dict[str, str]:
    """Return each quantized module and each attention of the plan → its name in the model."""
    modules = dict(model.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, torch.nn.Linear)]
    known = {name: module.address for name, module in plan.quantized.items()}
    return {**named_alike(plan.quantized, linear, known), **named_alike(plan.attentions, modules)}


def _decoder_layers(model: Any, names: dict[str, str]) -> list[Any]:
    prefix = layer_prefix(next(iter(names.values())))
    stack = prefix.rstrip(".").rpartition(".")[0]
    return list(model.get_submodule(stack))


def layer_prefix(name: str) -> str:
    """Return the part of a module's name that its decoder layer shares, `model.layers.3.` for example.

    Raises:
        QuantgateError: the module is not in a decoder layer.
    """
    found = LAYER.search(name)
    if found is None:
        raise QuantgateError(f"{name} is not in a decoder layer")
    return name[: found.end()]
