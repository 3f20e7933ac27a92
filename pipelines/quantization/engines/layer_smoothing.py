"""Smoothing of a decoder layer, before it is rounded."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipelines.quantization.engines.layer import Layer
from pipelines.quantization.engines.loading import LoadedModel, layer_prefix
from pipelines.quantization.engines.stream import Stream
from pipelines.quantization.methods.smoothing import (
    Link,
    Rounder,
    Smoothing,
    divide_output,
    find_links,
    harmless_links,
)


@dataclass(frozen=True)
class Smoothed:
    """What smoothing did to a layer; tensors on the CPU."""

    factors: dict[str, torch.Tensor]
    """Factors by name, as `written.write_smoothing` keeps them."""
    changed: dict[str, torch.Tensor]
    """Norms and biases by their names in the checkpoint, in the dtype they are stored in."""


UNSMOOTHED = Smoothed({}, {})


def smooth_layer(
    layer: Layer,
    smoothing: Smoothing,
    loaded: LoadedModel,
    stream: Stream,
    rounder: Rounder,
    stored: Mapping[str, torch.dtype],
) -> Smoothed:
    """Multiply columns of the layer's weights as `smoothing` says, and divide what comes before them in the model.

    `stored` is the dtype of each tensor of the checkpoint, which factors are rounded for.
    """
    factors: dict[str, torch.Tensor] = {}
    changed: dict[str, torch.Tensor] = {}
    in_checkpoint = {loaded.names[name]: name for name in layer.weights}
    for link in _links(layer, smoothing, loaded, stream):
        readers = [in_checkpoint[name] for name in link.readers]
        source = in_checkpoint.get(link.source) or _named_beside(readers[0], link)
        weights, group_size = {name: layer.weights[name] for name in readers}, layer.modules[readers[0]].group_size
        wanted = smoothing.find_factors(weights, layer.inputs[readers[0]], group_size, rounder)
        writer = loaded.model.get_submodule(link.source)
        rows = divide_output(writer, wanted, stored[f"{source}.weight"])
        if source in layer.weights:
            layer.weights[source].div_(rows[:, None])
            factors[f"{source}.rows"] = rows.cpu()
        for part, value in writer.named_parameters():
            if part != "weight" or source not in layer.weights:
                name = f"{source}.{part}"
                changed[name] = value.detach().to("cpu", stored[name], copy=True)
        columns = rows[-len(wanted) :]
        layer.multiply_columns(readers, columns)
        factors |= {f"{name}.columns": columns.cpu().clone() for name in readers}  # a file holds no tensor twice
    return Smoothed(factors, changed)


def _links(layer: Layer, smoothing: Smoothing, loaded: LoadedModel, stream: Stream) -> list[Link]:
    """Return the links in a layer along which it may be smoothed."""
    quantized = {loaded.names[name]: weight for name, weight in layer.weights.items()}
    prefix = layer_prefix(next(iter(quantized)))
    inside = [f"{prefix}{name}" for name, _ in loaded.layers[layer.number].named_modules() if name]
    links = find_links(loaded.model, inside, quantized)
    if smoothing.norms_only:
        links = [link for link in links if link.source not in quantized]
    return harmless_links(loaded.model, links, stream.hidden[0], lambda: stream.output(0, layer.number))


def _named_beside(reader: str, link: Link) -> str:
    """Return the checkpoint's name of a link's source, by that of a module in the same decoder layer."""
    return layer_prefix(reader) + link.source.removeprefix(layer_prefix(link.source))
