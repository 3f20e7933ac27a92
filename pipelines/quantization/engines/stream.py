"""The calibration tokens on their way through a model, from one decoder layer to the next.

A decoder layer's arguments (masks, rotary embeddings, alibi) differ between models and layers: they are taken from a
real forward pass for each shape of batch, and serve all batches of it because other tokens do not change them.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pipelines.core.errors import QuantgateError
from pipelines.runtimes.loading import explained

FREE_SHARE = 0.25
"""Share of a GPU's free memory that hidden states may fill: what goes into a layer, and what comes out."""
DATA_FREE = "need a data-free method, like fp8"

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a layer besides the hidden states."""


class Stream:
    """The hidden states of all calibration tokens before one of the decoder layers of a model."""

    def __init__(self, model: Any, layers: list[Any], batches: list[torch.Tensor], device: torch.device) -> None:
        """Take `batches` of token ids (samples, tokens) to the first of `layers`, which will run on `device`.

        Raises:
            QuantgateError: transformers cannot run the model on them, or its layers read more than hidden states.
        """
        self.layers, self.device = layers, device
        self.hidden: list[torch.Tensor] = []
        """Hidden states (samples, tokens, features) of each batch."""
        self._arguments: dict[tuple[int, ...], list[Arguments]] = {}
        """Shape of a batch of tokens → the arguments of each layer."""
        for batch in batches:
            with explained(_cannot_run):
                if batch.shape not in self._arguments:
                    self._arguments[batch.shape] = _layer_arguments(model, layers, batch)
                self.hidden.append(_first_input(model, layers[0], batch))
            if self.hidden[-1].shape[:2] not in self._arguments:
                raise QuantgateError(f"layers that get no hidden state for each token {DATA_FREE}")
        size = sum(hidden.nbytes for hidden in self.hidden)
        if device.type == "cuda" and 2 * size < FREE_SHARE * torch.cuda.mem_get_info(device)[0]:
            self.hidden = [hidden.to(device) for hidden in self.hidden]  # else they come and go with each batch

    def run(self, number: int, after: Callable[[], None] | None = None) -> list[torch.Tensor]:
        """Return the outputs of layer `number` for all batches; `after` is called after each."""
        outputs = []
        for batch in range(len(self.hidden)):
            outputs.append(self.output(batch, number))
            if after:
                after()
        return outputs

    def output(self, batch: int, number: int) -> torch.Tensor:
        """Return the output of layer `number` for one batch, where the batch's hidden states are."""
        hidden = self.hidden[batch]
        args, kwargs = _to(self._arguments[hidden.shape[:2]][number], self.device)
        output = self.layers[number](hidden.to(self.device), *args, **kwargs)
        moved: torch.Tensor = (output[0] if isinstance(output, tuple) else output).to(hidden.device)
        return moved

    def advance(self, number: int) -> None:
        """Make the outputs of layer `number` the hidden states."""
        self.hidden = self.run(number)


def _cannot_run(why: str) -> QuantgateError:
    return QuantgateError(f"transformers cannot run the model on calibration text: {why}")


class _InputFound(Exception):
    """Ends a forward pass, once the first layer's input is known."""


def _first_input(model: Any, layer: Any, batch: torch.Tensor) -> torch.Tensor:
    """Return the hidden states (samples, tokens, features) that the first layer gets; nothing after it is computed."""
    seen: list[torch.Tensor] = []

    def stop(_: Any, arguments: Any, kwargs: dict[str, Any]) -> None:
        seen.append(arguments[0] if arguments else kwargs["hidden_states"])
        raise _InputFound

    hook = layer.register_forward_pre_hook(stop, with_kwargs=True)
    with contextlib.suppress(_InputFound):
        model(batch, use_cache=False)
    hook.remove()
    return seen[0]


def _layer_arguments(model: Any, layers: list[Any], batch: torch.Tensor) -> list[Arguments]:
    """Return the arguments that each layer gets besides the hidden states, for any batch of this shape.

    Raises:
        QuantgateError: they are not the same for other tokens.
    """
    found, of_other_tokens = (_record_arguments(model, layers, tokens) for tokens in (batch, batch.flip(1)))
    pairs = zip(_tensors(found), _tensors(of_other_tokens), strict=True)
    if not all(torch.equal(one, other) for one, other in pairs):
        raise QuantgateError(f"layers that read more of a text than hidden states {DATA_FREE}")
    return found


def _record_arguments(model: Any, layers: list[Any], tokens: torch.Tensor) -> list[Arguments]:
    """Return the layers' arguments in a forward pass, in which the first layer's output passes for that of each."""
    found, outputs = list[Arguments](), list[Any]()
    for layer in layers:

        def note(*args: Any, run: Any = layer.forward, **kwargs: Any) -> Any:
            found.append((args[1:], {key: value for key, value in kwargs.items() if key != "hidden_states"}))
            if not outputs:
                outputs.append(run(*args, **kwargs))
            return outputs[0]

        layer.forward = note
    model.base_model(tokens, use_cache=False)
    for layer in layers:
        del layer.forward
    return found


def _to(value: Any, device: torch.device) -> Any:
    """Return `value`, nested as arguments are, with every tensor in it on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_to(item, device) for item in value)
    return value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors in `value`, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | tuple | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
