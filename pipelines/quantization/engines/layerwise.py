"""The calibrated methods, one decoder layer at a time: measure its inputs, smooth, round, go on with the result.

The tokens pass through each layer twice: once to measure, and once more with the rounded weights, so that the next
layer is rounded for the inputs it will really get. Modules that read the same input share one second moment and are
rounded together.

Quirks of what this rests on, met here and shown to nobody:
- transformers stores a mixture's experts as one tensor, which no hook sees: llmcompressor's linear experts replace it,
  and give every token to every expert while measuring, so that none is left without data.
- llmcompressor logs to what is standard output while it is imported, through loguru.
- A decoder layer's arguments (masks, rotary embeddings, alibi) differ between models and layers: they are taken from a
  real forward pass for each shape of batch, and serve all batches of it because other tokens do not change them.
"""

import contextlib
import ctypes
import inspect
import mmap
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pipelines.calibration.stage import CalibrationTokens, read_tokens
from pipelines.checkpoint.finite import check_finite
from pipelines.checkpoint.names import EXPERTS, LAYER, layer_number
from pipelines.core import progress
from pipelines.core.errors import BadInput, QuantgateError, bad_input
from pipelines.formats import rounding
from pipelines.formats.schemes import FP8_MAX, SCHEMES
from pipelines.planning.plan import CheckpointPlan, Module
from pipelines.planning.quantization_config import written_config
from pipelines.quantization.batches import equal_batches
from pipelines.quantization.files import ArtifactFiles, copy_kept
from pipelines.quantization.methods import gptq, smoothing
from pipelines.quantization.methods.statistics import Collector, InputStatistics
from pipelines.quantization.written import Written, write_smoothing
from pipelines.recipe.methods import Awq, Gptq, Rtn
from pipelines.runtimes import module_names
from pipelines.runtimes.loading import explained
from pipelines.runtimes.module_names import linearize_experts, named_alike

FREE_SHARE = 0.25
"""Of a GPU's free memory, that hidden states may fill: what goes into a layer, and what comes out."""
MADV_PAGEOUT = 21
"""Linux's number for: take these pages out of memory, and lose nothing. Kernels before 5.4 ignore it."""
SOUND = 0.03
"""Share of what a layer adds to its input that smoothing may change: rounding, where a norm has an offset."""


def quantize(plan: CheckpointPlan, tokens: CalibrationTokens, folder: Path) -> Written:
    """Calibrate, and write the artifact's weight files into `folder`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.inference_mode(), _all_experts(plan), ArtifactFiles(plan, folder) as files:
        model = _load(plan)
        work = _Work(plan, model, files)
        batches = list(equal_batches(read_tokens(tokens)))
        with _copied(_before_layers(model, work.layers), torch.device("cpu"), work.dtype):
            stream = _Stream(model, work.layers, batches, device)
        for parameter in model.parameters():  # transformers looked at all of them, and embeddings are done with
            _let_go(parameter.data)
        for number, layer in enumerate(progress.track(work.layers, "quantize", "layer")):
            with _copied([*layer.parameters(), *layer.buffers()], device, work.dtype):
                work.layer(number, layer, stream)
        copy_kept(plan, files, frozenset(work.rescaled))
    write_smoothing(work.smoothing, folder)
    return Written(quantization_config=written_config(plan), rescaled=tuple(sorted(work.rescaled)))


@contextlib.contextmanager
def _copied(tensors: list[torch.Tensor], device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Give `tensors` memory of their own, on `device`, for as long as they are worked on; parameters as `dtype`.

    They are pages of the source's file: what is read or written there stays in memory, layer after layer.
    """
    originals = [tensor.data for tensor in tensors]
    for tensor in tensors:
        own = dtype if isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point() else tensor.dtype
        tensor.data = tensor.data.to(device, own, copy=True)
    for original in originals:
        _let_go(original)
    yield
    for tensor, original in zip(tensors, originals, strict=True):
        tensor.data = original


def _before_layers(model: Any, layers: list[Any]) -> list[torch.Tensor]:
    """Return the parameters that hidden states of the first of the decoder `layers` depend on, itself included: all
    but those of other layers and of a head of its own."""
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and head.weight is not embedding.weight:
        inside |= {id(parameter) for parameter in head.parameters()}
    outside = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    return [*outside, *layers[0].parameters()]


def _let_go(tensor: torch.Tensor) -> None:
    """Give back the memory of pages that mirror a file; whoever reads `tensor` again reads the file again."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = tensor.data_ptr() + tensor.nbytes - first
    if sys.platform == "linux" and tensor.device.type == "cpu" and size > 0:
        libc = ctypes.CDLL(None)  # the standard library's madvise is for maps of its own
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), MADV_PAGEOUT)


class _Work:
    """One pass over a model: what is to be done, and what was done so far."""

    def __init__(self, plan: CheckpointPlan, model: Any, files: ArtifactFiles) -> None:
        self.plan, self.model, self.files = plan, model, files
        self.method = plan.recipe.quantize
        self.dtype: torch.dtype = getattr(torch, plan.dtype)
        """What layers compute in."""
        self.stored = {tensor.name: rounding.DTYPES[tensor.dtype] for tensor in plan.checkpoint.tensors}
        """Tensor of the checkpoint → what it is stored in."""
        self.names = _model_names(plan, model)
        """Quantized or attention module of the checkpoint → its name in the model."""
        self.layers = _decoder_layers(model, self.names)
        self.smoothing: dict[str, torch.Tensor] = {}
        self.rescaled: set[str] = set()

    def layer(self, number: int, layer: Any, stream: "_Stream") -> None:
        """Quantize one decoder layer, and take the stream of tokens through it."""
        modules = {m.name: m for m in self.plan.quantized.values() if layer_number(m.name) == number}
        linears = {name: self.model.get_submodule(self.names[name]) for name in modules}
        attentions = [name for name in self.plan.attentions if layer_number(name) == number]
        if not modules and not attentions:
            return stream.advance(number, layer)
        collector = Collector(linears, with_hessian=not isinstance(self.method, Rtn))
        caches = self._watch(attentions) if isinstance(self.method, Rtn) else {}
        outputs = stream.run(number, layer, collector.after_forward)
        statistics = collector.close()
        if missing := modules.keys() - statistics.keys():
            raise QuantgateError(f"calibration reached no input of {', '.join(sorted(missing))}")
        weights = {name: linear.weight.to(torch.float32, copy=True) for name, linear in linears.items()}
        self._check_finite(weights, statistics)
        self._smooth(number, layer, stream, weights, statistics)
        for group in _together(modules, statistics):
            self._round(group, weights, statistics[group[0].name], linears)
        if isinstance(self.method, Rtn):
            stream.hidden = outputs
        else:
            caches = self._watch(attentions)  # of the keys and values that the rounded weights make
            stream.advance(number, layer)
        for name, cache in caches.items():
            self._write_cache_scales(name, cache)

    def _check_finite(self, weights: dict[str, torch.Tensor], statistics: dict[str, InputStatistics]) -> None:
        """Raise an error if a module holds or reads NaN or infinities: `BadInput` if the source does."""
        numbers = {name: (weight, statistics[name].largest) for name, weight in weights.items()}
        odd = [name for name, pair in numbers.items() if not all(torch.isfinite(part).all() for part in pair)]
        tensors = {tensor.name: tensor for tensor in self.plan.checkpoint.tensors}
        check_finite(self.plan.checkpoint, [tensors[f"{name}.weight"] for name in odd])
        if odd:
            why = "try --dtype float32" if self.dtype.itemsize < 4 else "the source is broken"
            raise QuantgateError(f"{odd[0]} holds or reads NaN or infinite numbers in {self.plan.dtype}; {why}")

    def _watch(self, attentions: list[str]) -> dict[str, "_CacheRange"]:
        for name in attentions:
            takes = inspect.signature(self.model.get_submodule(self.names[name]).forward).parameters
            if not {"past_key_values", "past_key_value"} & takes.keys():
                raise unseen_cache(name)
        return {name: _CacheRange(self.model, self.model.get_submodule(self.names[name])) for name in attentions}

    def _smooth(
        self,
        number: int,
        layer: Any,
        stream: "_Stream",
        weights: dict[str, torch.Tensor],
        statistics: dict[str, InputStatistics],
    ) -> None:
        """Scale columns of `weights`, and divide what comes before them, as the method says."""
        smooths = isinstance(self.method, Awq) or (
            isinstance(self.method, Gptq) and self.method.smoothquant is not None
        )
        if not smooths or not weights:
            return
        stored = {self.names[name]: name for name in weights}
        prefix = _layer_prefix(next(iter(stored)))
        inside = [f"{prefix}{name}" for name, _ in layer.named_modules() if name]
        links = smoothing.find_links(self.model, inside, {name: weights[stored[name]] for name in stored})
        if isinstance(self.method, Gptq):  # SmoothQuant smooths what norms write
            links = [link for link in links if link.source not in stored]
        for link in self._sound(links, number, layer, stream):
            readers = [stored[name] for name in link.readers]
            chosen, measured = {name: weights[name] for name in readers}, statistics[readers[0]]
            if isinstance(self.method, Awq):
                group_size = self.plan.quantized[readers[0]].group_size
                factors = smoothing.awq_factors(chosen, measured, group_size, self._rounded)
            else:
                assert isinstance(self.method, Gptq) and self.method.smoothquant is not None
                factors = smoothing.smoothquant_factors(list(chosen.values()), measured, self.method.smoothquant)
            source = stored.get(link.source) or _layer_prefix(readers[0]) + link.source.removeprefix(prefix)
            factors = self._divide_source(source, self.model.get_submodule(link.source), factors, weights)
            for name in readers:
                weights[name] = weights[name] * factors
                self.smoothing[f"{name}.columns"] = factors.cpu().clone()  # a file holds no tensor twice
            for shared in {id(statistics[name]): statistics[name] for name in readers}.values():
                shared.divide(factors)

    def _divide_source(
        self, source: str, module: Any, factors: torch.Tensor, weights: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Divide what writes the input by `factors`, and return what it was divided by after rounding to its dtype."""
        rows = _divide(module, factors, self.stored[f"{source}.weight"])
        if source in weights:
            weights[source] = weights[source] / rows[:, None]
            self.smoothing[f"{source}.rows"] = rows.cpu()
        for name, parameter in module.named_parameters():
            if name != "weight" or source not in weights:
                self._keep(f"{source}.{name}", parameter)
        return rows[-len(factors) :]

    def _sound(self, links: list[smoothing.Link], number: int, layer: Any, stream: "_Stream") -> list[smoothing.Link]:
        """The links along which smoothing leaves the layer's function alone.

        Tried out, because there are more architectures than tables know: one reads a norm twice, another bends what a
        linear module writes. All links at once, and one by one only if that fails.
        """
        before = stream.output(0, number, layer)

        def hold(some: list[smoothing.Link]) -> bool:
            with self._doubled(some):
                after = stream.output(0, number, layer)
            return bool((after - before).float().norm() <= SOUND * (before - stream.hidden[0]).float().norm())

        return links if hold(links) else [link for link in links if hold([link])]

    @contextlib.contextmanager
    def _doubled(self, links: list[smoothing.Link]) -> Iterator[None]:
        """Every other column along `links` multiplied by 2 in the readers, and divided by 2 in the source: no bit of a
        plain weight is lost."""
        modules = {name: self.model.get_submodule(name) for link in links for name in (link.source, *link.readers)}
        saved = {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in modules.items()}
        for link in links:
            columns = modules[link.readers[0]].weight.shape[1]
            factors = 1.0 + torch.arange(columns, device=modules[link.source].weight.device) % 2
            _divide(modules[link.source], factors, modules[link.source].weight.dtype)
            for name in link.readers:
                modules[name].weight.mul_(factors)
        yield
        for name, module in modules.items():
            module.load_state_dict(saved[name])

    def _keep(self, name: str, value: torch.Tensor) -> None:
        self.rescaled.add(name)
        self.files.write(name, value.cpu().to(self.stored[name]))

    def _scales(self, name: str, weight: torch.Tensor, shrink: float, largest: torch.Tensor | None) -> Any:
        module = self.plan.quantized[name]
        assert module.scheme
        tensor_scale = None if largest is None else rounding.fp4_tensor_scale(largest)
        return rounding.find_scales(
            weight, module.scheme, module.group_size, tensor_scale, rounding.DTYPES[module.dtype], shrink
        )

    def _rounded(self, weight: torch.Tensor, name: str) -> torch.Tensor:
        scales = self._scales(name, weight, 1.0, None)
        return rounding.dequantize(rounding.quantize(weight, scales), scales)

    def _round(
        self,
        group: list[Module],
        weights: dict[str, torch.Tensor],
        measured: InputStatistics,
        linears: dict[str, Any],
    ) -> None:
        """Round modules that share input and scheme, as one matrix, and put what they became into model and files."""
        weight = torch.cat([weights[module.name] for module in group])
        name, scheme = group[0].name, group[0].scheme
        assert scheme
        chosen = SCHEMES[scheme]
        largest = weight.abs().amax() if chosen.weights.strategy == "tensor_group" else None
        if chosen.family in ("INT4", "FP4") and not isinstance(self.method, Rtn):
            scales = smoothing.clipped_scales(weight, lambda s: self._scales(name, weight, s, largest), measured)
        else:
            scales = self._scales(name, weight, 1.0, largest)
        if isinstance(self.method, Gptq):
            codes = gptq.quantize(weight, scales, measured.hessian, self.method.dampening)
        else:
            codes = rounding.quantize(weight, scales)
        restored = rounding.dequantize(codes, scales)
        first = 0
        for module in group:
            last = first + module.shape[0]
            per = module.group_size if chosen.is_block and module.group_size else 1
            own = scales.rows(first // per, last // per)
            self._write(module, codes[first:last], own, measured)
            linears[module.name].weight.copy_(restored[first:last])
            first = last

    def _write(self, module: Module, codes: torch.Tensor, scales: rounding.Scales, measured: InputStatistics) -> None:
        assert module.scheme
        packed = rounding.pack(codes, scales, module.scheme, rounding.DTYPES[module.dtype])
        parts = {suffix: part.cpu() for suffix, part in packed.items()}
        largest = measured.largest.amax().cpu()
        if "input_global_scale" in module.parts:
            parts["input_global_scale"] = rounding.fp4_tensor_scale(largest)
        if "input_scale" in module.parts:
            parts["input_scale"] = _fp8_scale(largest).to(rounding.DTYPES[module.dtype])
        self.files.write_rows(module, parts)
        self.files.write_shape(module)

    def _write_cache_scales(self, name: str, cache: "_CacheRange") -> None:
        if not cache.keys or not cache.values:
            raise unseen_cache(name)
        for scale, largest in (("k_scale", cache.keys), ("v_scale", cache.values)):
            dtype = rounding.DTYPES[self.plan.cache_scales[f"{name}.{scale}"][0]]
            self.files.write(f"{name}.{scale}", _fp8_scale(largest.cpu()).to(dtype))
        cache.close()


Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer gets besides the hidden states."""
DATA_FREE = "need a data-free method, like fp8"


def _unrunnable(why: str) -> QuantgateError:
    return QuantgateError(f"transformers cannot run the model on calibration text: {why}")


class _Stream:
    """The hidden states of all calibration tokens on their way through the layers."""

    def __init__(self, model: Any, layers: list[Any], batches: list[torch.Tensor], device: torch.device) -> None:
        self.device = device
        self.hidden: list[torch.Tensor] = []
        self._arguments: dict[tuple[int, ...], list[Arguments]] = {}
        """Shape of a batch of tokens → the arguments of each layer."""
        for batch in batches:
            with explained(_unrunnable):
                if batch.shape not in self._arguments:
                    self._arguments[batch.shape] = _arguments(model, layers, batch)
                self.hidden.append(_first_input(model, layers[0], batch))
            if self.hidden[-1].shape[:2] not in self._arguments:
                raise QuantgateError(f"layers that get no hidden state for each token {DATA_FREE}")
        states = sum(hidden.nbytes for hidden in self.hidden)
        if device.type == "cuda" and 2 * states < FREE_SHARE * torch.cuda.mem_get_info(device)[0]:
            self.hidden = [hidden.to(device) for hidden in self.hidden]  # else they come and go with each batch

    def run(self, number: int, layer: Any, after: Any = None) -> list[torch.Tensor]:
        """The outputs of `layer` for all batches; `after` is called after each."""
        outputs = []
        for batch in range(len(self.hidden)):
            outputs.append(self.output(batch, number, layer))
            if after:
                after()
        return outputs

    def output(self, batch: int, number: int, layer: Any) -> torch.Tensor:
        """The output of `layer` for one batch."""
        hidden = self.hidden[batch]
        args, kwargs = _to(self._arguments[hidden.shape[:2]][number], self.device)
        output = layer(hidden.to(self.device), *args, **kwargs)
        moved: torch.Tensor = (output[0] if isinstance(output, tuple) else output).to(hidden.device)
        return moved

    def advance(self, number: int, layer: Any) -> None:
        """Make the outputs of `layer` the hidden states."""
        self.hidden = self.run(number, layer)


def unseen_cache(attention: str) -> BadInput:
    """The error for an attention module in which transformers does not show what it caches."""
    what = "is of a class in transformers that does not show its keys and values, so that they cannot be measured"
    return bad_input(f"module {attention}", what, "use a recipe without kv_cache, like fp8 or fp8-static")


class _CacheRange:
    """The largest magnitudes of an attention module's keys (after rotary embedding) and values."""

    def __init__(self, model: Any, attention: Any) -> None:
        from compressed_tensors.modeling.kvcache import (
            initialize_hooked_kv_cache,
            register_key_hook,
            register_value_hook,
        )

        self.keys = self.values = torch.zeros(())
        before = set(attention._forward_pre_hooks)
        initialize_hooked_kv_cache(model, attention)
        self._attention, self._added = attention, set(attention._forward_pre_hooks) - before

        def see_keys(_: Any, keys: torch.Tensor) -> None:
            self.keys = torch.maximum(self.keys.to(keys.device), keys.abs().amax().float())

        def see_values(_: Any, values: torch.Tensor) -> None:
            self.values = torch.maximum(self.values.to(values.device), values.abs().amax().float())

        register_key_hook(attention, see_keys)
        register_value_hook(attention, see_values)

    def close(self) -> None:
        """Take the hooks off again."""
        for hook in self._added:
            del self._attention._forward_pre_hooks[hook]
        del self._attention.kv_cache


def _load(plan: CheckpointPlan) -> Any:
    import transformers

    chosen = getattr(transformers, plan.family)
    model = chosen.from_pretrained(plan.checkpoint.folder, dtype="auto", trust_remote_code=False).eval()
    if _has_experts(plan):
        linearize_experts(model)
    return model


@contextlib.contextmanager
def _all_experts(plan: CheckpointPlan) -> Iterator[None]:
    """Give every token to every expert of a mixture."""
    if not _has_experts(plan):
        yield
        return
    with module_names.quietly():
        from llmcompressor.modeling.moe.context import moe_calibration_context
    with moe_calibration_context():
        yield


def _has_experts(plan: CheckpointPlan) -> bool:
    return any(EXPERTS.match(name) for name in plan.quantized)


def _model_names(plan: CheckpointPlan, model: Any) -> dict[str, str]:
    """Each quantized module and each attention of the plan → its name in the model."""
    modules = dict(model.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, torch.nn.Linear)]
    known = {name: module.address for name, module in plan.quantized.items()}
    return {**named_alike(plan.quantized, linear, known), **named_alike(plan.attentions, modules)}


def _decoder_layers(model: Any, names: dict[str, str]) -> list[Any]:
    prefix = _layer_prefix(next(iter(names.values())))
    stack = prefix.rstrip(".").rpartition(".")[0]
    return list(model.get_submodule(stack))


def _layer_prefix(name: str) -> str:
    """`model.layers.3.` of a module's name."""
    found = LAYER.search(name)
    if found is None:
        raise QuantgateError(f"{name} is not in a decoder layer")
    return name[: found.end()]


def _together(modules: dict[str, Module], statistics: dict[str, InputStatistics]) -> list[list[Module]]:
    """Modules that read the same input and have the same scheme."""
    groups: dict[Any, list[Module]] = {}
    for name, module in modules.items():
        groups.setdefault((id(statistics[name]), module.scheme, module.group_size), []).append(module)
    return list(groups.values())


class _Reached(Exception):
    """The first layer's input is known."""


def _first_input(model: Any, layer: Any, batch: torch.Tensor) -> torch.Tensor:
    """The hidden states (samples, tokens, features) that the first layer gets; nothing after it is computed."""
    seen: list[torch.Tensor] = []

    def stop(_: Any, arguments: Any, kwargs: dict[str, Any]) -> None:
        seen.append(arguments[0] if arguments else kwargs["hidden_states"])
        raise _Reached

    hook = layer.register_forward_pre_hook(stop, with_kwargs=True)
    with contextlib.suppress(_Reached):
        model(batch, use_cache=False)
    hook.remove()
    return seen[0]


def _arguments(model: Any, layers: list[Any], batch: torch.Tensor) -> list[Arguments]:
    """Return the arguments that each layer gets besides the hidden states, for any batch of this shape.

    Raises:
        QuantgateError: they are not the same for other tokens.
    """
    found, others = (_noted(model, layers, tokens) for tokens in (batch, batch.flip(1)))
    pairs = zip(_tensors(found), _tensors(others), strict=True)
    if not all(torch.equal(one, other) for one, other in pairs):
        raise QuantgateError("layers that read more of a text than hidden states need a data-free method, like fp8")
    return found


def _noted(model: Any, layers: list[Any], tokens: torch.Tensor) -> list[Arguments]:
    """Return what the layers get in a forward pass, in which the first layer's output passes for that of each."""
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
    return _each_tensor(value, lambda tensor: tensor.to(device))


def _each_tensor(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with every tensor in it changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_tensor(item, change) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_each_tensor(item, change) for item in value)
    return value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in `value`, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | tuple | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _divide(module: Any, factors: torch.Tensor, stored: torch.dtype) -> torch.Tensor:
    """Divide what a norm, or a linear module in its last rows, writes by `factors`.

    Returns what each row was divided by, after rounding to the dtype it is `stored` in: 1 where so little would be left
    of a norm's weight that it would round to nothing.
    """
    weight = module.weight
    rows = torch.ones(len(weight), device=factors.device)
    rows[-len(factors) :] = factors
    if weight.ndim == 2:
        weight.copy_(weight.float() / rows[:, None])
    else:
        offset = _offset(module)
        before = weight.float() + offset
        divided = (before / rows - offset).to(stored).to(weight.dtype)
        after = divided.float() + offset
        rows = torch.where(after == 0, 1.0, before / after)
        weight.copy_(torch.where(after == 0, weight, divided))
    if getattr(module, "bias", None) is not None:
        module.bias.copy_((module.bias.float() / rows).to(stored))
    return rows


def _offset(norm: Any) -> float:
    """What a norm adds to its weight before it multiplies by it: 1 in Gemma, where a weight of zero is no zero."""
    nothing = {name: torch.zeros_like(parameter) for name, parameter in norm.named_parameters()}
    signs = 1 - 2 * (torch.arange(len(norm.weight), device=norm.weight.device) % 2)
    return 1.0 if torch.func.functional_call(norm, nothing, (signs.to(norm.weight.dtype),)).any() else 0.0


def _fp8_scale(largest: torch.Tensor) -> torch.Tensor:
    """(1,): what maps `largest` onto FP8's largest value."""
    largest = largest.float().reshape(1)
    return torch.where(largest > 0, largest / FP8_MAX, torch.ones_like(largest))
