"""The rounding of the numbers between layers: bit for bit as compressed-tensors does it, and several times faster."""

from typing import Any

from pipelines.core.errors import QuantgateError
from pipelines.formats.description import Rounder
from pipelines.formats.schemes import SCHEMES


def input_rounder(module: Any, inputs: Any) -> Rounder:
    """Return how `module` rounds its input, by compressed-tensors' description of it (its QuantizationArgs).

    Raises:
        QuantgateError: no scheme has activations of this form.
    """
    described = inputs.model_dump(mode="json")
    form = tuple(described[key] for key in ("type", "num_bits", "strategy", "dynamic"))
    for scheme in SCHEMES.values():
        numbers = scheme.activations
        if numbers and (numbers.kind, numbers.bits, numbers.strategy, numbers.dynamic) == form:
            measured = () if numbers.dynamic is True else (float(getattr(module, numbers.stored_scale("")[0])),)
            size = (int(inputs.group_size),) if numbers.group_size else ()
            return (numbers.round, *measured, *size)
    raise QuantgateError(f"activations of this form are not known here: {form}")
