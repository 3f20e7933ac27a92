"""The calibrated engine, one decoder layer at a time: measure its inputs, smooth, round, go on with the result.

The tokens pass through each layer twice: once to measure, and once more with the rounded weights, so that the next
layer is rounded for the inputs it will really get. Modules that read the same input share one second moment and are
rounded together.
"""

from pathlib import Path

import torch

from pipelines.calibration.tokens import CalibrationTokens, read_tokens
from pipelines.checkpoint.finite import check_finite
from pipelines.checkpoint.names import layer_number
from pipelines.core import progress
from pipelines.core.errors import QuantgateError
from pipelines.formats import fp8, nvfp4, rounding
from pipelines.formats.description import Scales
from pipelines.formats.schemes import SCHEMES
from pipelines.planning.plan import CheckpointPlan, Module
from pipelines.planning.quantization_config import written_config
from pipelines.quantization.batches import equal_batches
from pipelines.quantization.engines.layer import Layer
from pipelines.quantization.engines.layer_smoothing import UNSMOOTHED, Smoothed, smooth_layer
from pipelines.quantization.engines.loading import LoadedModel, every_token_to_every_expert, load_for_calibration
from pipelines.quantization.engines.memory import own_memory, release_pages
from pipelines.quantization.engines.stream import Stream
from pipelines.quantization.files import ArtifactFiles, copy_kept
from pipelines.quantization.methods.interface import ScalesAt
from pipelines.quantization.methods.kv_cache import CacheRange, unseen_cache, watch_caches
from pipelines.quantization.methods.statistics import Collector, InputStatistics
from pipelines.quantization.methods.table import choose_method
from pipelines.quantization.written import Written, write_smoothing
from pipelines.recipe.methods import Gguf


def quantize(plan: CheckpointPlan, tokens: CalibrationTokens, folder: Path) -> Written:
    """Calibrate, and write the artifact's weight files into `folder`.

    Raises:
        BadInput: the source holds NaN or infinities, or does not show what its attention caches.
        QuantgateError: the model cannot be run on the tokens, or computes NaN or infinities.
    """
    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, plan.dtype)
    factors: dict[str, torch.Tensor] = {}
    changed: dict[str, torch.Tensor] = {}
    with torch.inference_mode(), every_token_to_every_expert(plan), ArtifactFiles(plan, folder) as files:
        loaded = load_for_calibration(plan)
        batches = list(equal_batches(read_tokens(tokens)))
        with own_memory(loaded.before_second_layer(), torch.device("cpu"), dtype):
            stream = Stream(loaded.model, loaded.layers, batches, device)
        for parameter in loaded.model.parameters():  # transformers looked at all of them, and embeddings are done with
            release_pages(parameter.data)
        quantizer = LayerQuantizer(plan, loaded, stream, files)
        for number, layer in enumerate(progress.track(loaded.layers, "quantize", "layer")):
            with own_memory([*layer.parameters(), *layer.buffers()], device, dtype):
                smoothed = quantizer.quantize_layer(number)
            factors |= smoothed.factors
            changed |= smoothed.changed
        for name, value in changed.items():
            files.write(name, value)
        copy_kept(plan, files, frozenset(changed))
    write_smoothing(factors, folder)
    return Written(quantization_config=written_config(plan), rescaled=tuple(sorted(changed)))


class LayerQuantizer:
    """Takes the decoder layers of a model in order, and writes what they become."""

    def __init__(self, plan: CheckpointPlan, loaded: LoadedModel, stream: Stream, files: ArtifactFiles) -> None:
        assert not isinstance(plan.recipe.quantize, Gguf)
        self.plan, self.loaded, self.stream, self.files = plan, loaded, stream, files
        self.method = choose_method(plan.recipe.quantize)
        self.stored = {tensor.name: rounding.DTYPES[tensor.dtype] for tensor in plan.checkpoint.tensors}
        """Tensor of the checkpoint → the dtype it is stored in."""

    def quantize_layer(self, number: int) -> Smoothed:
        """Quantize decoder layer `number`, take the stream of tokens through it, and return how it was smoothed."""
        modules = {name: module for name, module in self.plan.quantized.items() if layer_number(name) == number}
        names = [name for name in self.plan.attentions if layer_number(name) == number]
        attentions = {name: self.loaded.module(name) for name in names}
        if not modules and not attentions:
            self.stream.advance(number)
            return UNSMOOTHED
        caches = {} if self.method.follows_rounding else watch_caches(self.loaded.model, attentions)
        layer, outputs = self._measure(number, modules)
        self._check_finite(layer)
        smoothed = UNSMOOTHED
        if self.method.smoothing and modules:
            smoothed = smooth_layer(
                layer, self.method.smoothing, self.loaded, self.stream, self._round_trip, self.stored
            )
        for group in layer.groups():
            self.round_together(layer, group)
        if self.method.follows_rounding:
            del outputs  # as large as what takes their place
            caches = watch_caches(self.loaded.model, attentions)
            self.stream.advance(number)
        else:
            self.stream.hidden = outputs
        for name, cache in caches.items():
            self._write_cache_scales(name, cache)
        return smoothed

    def _measure(self, number: int, modules: dict[str, Module]) -> tuple[Layer, list[torch.Tensor]]:
        """Return a layer with what its modules read, and its outputs for all batches, before anything is changed."""
        linears = {name: self.loaded.module(name) for name in modules}
        collector = Collector(linears, self.method.measures_moments)
        outputs = self.stream.run(number, collector.after_forward)
        inputs = collector.close()
        if missing := modules.keys() - inputs.keys():
            raise QuantgateError(f"calibration reached no input of {', '.join(sorted(missing))}")
        weights = {name: linear.weight.to(torch.float32, copy=True) for name, linear in linears.items()}
        return Layer(number, modules, linears, weights, inputs), outputs

    def _check_finite(self, layer: Layer) -> None:
        """Raise an error if a module holds or reads NaN or infinities: `BadInput` if the source does."""
        numbers = {name: (weight, layer.inputs[name].largest) for name, weight in layer.weights.items()}
        broken = [name for name, pair in numbers.items() if not all(torch.isfinite(part).all() for part in pair)]
        tensors = {tensor.name: tensor for tensor in self.plan.checkpoint.tensors}
        check_finite(self.plan.checkpoint, [tensors[f"{name}.weight"] for name in broken])
        if broken:
            why = "the source is broken" if self.plan.dtype == "float32" else "try --dtype float32"
            raise QuantgateError(f"{broken[0]} holds or reads NaN or infinite numbers in {self.plan.dtype}; {why}")

    def round_together(self, layer: Layer, group: list[Module]) -> None:
        """Round modules that share input and scheme as one matrix, and put what they became into model and files."""
        weight, inputs = torch.cat([layer.weights[module.name] for module in group]), layer.inputs[group[0].name]
        scales = self.method.choose_scales(weight, scales_for(group[0], weight), inputs)
        codes = self.method.round(weight, scales, inputs)
        restored = rounding.dequantize(codes, scales)
        first = 0
        for module in group:
            assert module.scheme
            last = first + module.shape[0]
            per = module.group_size if SCHEMES[module.scheme].is_block and module.group_size else 1
            self._write(module, codes[first:last], scales.rows(first // per, last // per), inputs)
            layer.linears[module.name].weight.copy_(restored[first:last])
            first = last

    def _round_trip(self, weight: torch.Tensor, name: str) -> torch.Tensor:
        """Return what `weight` (rows, columns) of a module would be if it were rounded to nearest, in float32."""
        scales = scales_for(self.plan.quantized[name], weight)(1.0)
        return rounding.dequantize(rounding.quantize(weight, scales), scales)

    def _write(self, module: Module, codes: torch.Tensor, scales: Scales, inputs: InputStatistics) -> None:
        """Write what a module became: codes, scales, and the scale of its input where the format stores one."""
        assert module.scheme
        packed = rounding.pack(codes, scales, module.scheme, rounding.DTYPES[module.dtype])
        parts = {suffix: part.cpu() for suffix, part in packed.items()}
        largest = inputs.largest.amax().cpu()
        parts |= rounding.input_scale(module.scheme, largest, rounding.DTYPES[module.dtype])
        self.files.write_rows(module, parts)
        self.files.write_shape(module)

    def _write_cache_scales(self, name: str, cache: CacheRange) -> None:
        """Write the scales of the keys and values of attention module `name`, and watch it no longer.

        Raises:
            BadInput: no keys or no values were seen.
        """
        if not cache.keys or not cache.values:
            raise unseen_cache(name)
        for scale, largest in (("k_scale", cache.keys), ("v_scale", cache.values)):
            dtype = rounding.DTYPES[self.plan.cache_scales[f"{name}.{scale}"][0]]
            self.files.write(f"{name}.{scale}", fp8.measured_scale(largest.cpu()).to(dtype))
        cache.close()


def scales_for(module: Module, weight: torch.Tensor) -> ScalesAt:
    """Return the function from a share of each group's range to the scales of `weight` in the scheme of `module`.

    `weight` is (rows, columns) in float32: the module's own, or that of all modules that are rounded with it.
    """
    assert module.scheme
    scheme, whole = module.scheme, None
    if SCHEMES[scheme].weights.strategy == "tensor_group":
        whole = nvfp4.tensor_scale(weight.abs().amax())

    def scales_at(share: float) -> Scales:
        dtype = rounding.DTYPES[module.dtype]
        return rounding.find_scales(weight, scheme, module.group_size, whole, dtype, share)

    return scales_at
