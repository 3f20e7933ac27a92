"""A few tokens on their way through a model on the meta device: what its class does with them, with no weights.

Operations on that device compute shapes and types, no numbers. What only numbers decide (which expert a token goes to)
fails there, and says nothing of the model: what was seen until then is all that is reported.
"""

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from pipelines.core.errors import brief
from pipelines.core.strict_yaml import Frozen

TOKENS = 96
"""Tokens that pass through the model, if it has as many positions: what a reader of an artifact computes on."""
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "matmul", "einsum", "linear", "convolution")
"""Operations that take numbers of one floating-point type only, on every device."""
NORMS = ("layer_norm", "native_layer_norm", "group_norm", "native_group_norm")
"""Operations that take no parameters of a narrower floating-point type than their input's, on every device."""
SHAPES = ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty")
"""Operations whose results hold nothing but the shape of what they are given."""
KNOWN_SIZE = 1 << 16
"""Largest number of elements of a tensor whose values are followed."""
ONLY_WARNS = "warn_if_padding_and_no_attention_mask"
"""Method of a model in transformers that does nothing but warn."""
READS_TEXT = "read more of a text than hidden states"
NO_STATE = "get no hidden state for each token"


class Trial(Frozen):
    """The findings on a model's class from a few tokens on the meta device."""

    unused: tuple[str, ...]
    """Linear modules that the model does not use as such: it reads their weights itself, or not at all."""
    refused: str
    """Error that the model's class raises for any text, by a statement of its own; empty if there is none."""
    clash: str
    """Module that multiplies or scales numbers of two types as no device does, and these types; empty if none."""
    retyped: tuple[str, ...]
    """Buffers that the model replaces by others of a narrower floating-point type while it computes."""
    bound: dict[str, str]
    """Stack of layers (`model.layers`) → deed of its layers that forbids taking one layer after the other."""


def run(model: Any) -> Trial:
    """Pass `TOKENS` tokens through `model`, which is on the meta device and of no use after that."""
    import torch

    from pipelines.checkpoint.limits import positions

    tokens = min(TOKENS, positions(model.config.get_text_config(decoder=True)) or TOKENS)
    linear = {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    calls = _LinearCalls(linear)
    for module in model.modules():  # a loader calls this for modules with parts that it does not find
        if not isinstance(module, torch.nn.Linear):
            with contextlib.suppress(Exception), torch.no_grad():
                model._init_weights(module)
    for module in model.modules():
        if hasattr(module, ONLY_WARNS):  # it asks for numbers of the text
            setattr(module, ONLY_WARNS, lambda *_: None)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name not in linear:
            module.register_forward_hook(functools.partial(calls.compare, name))
    tracer = _Tracer(tokens)
    _trace(model, tracer)
    before = _types(model)
    ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
    refused = ""
    try:
        with torch.inference_mode(), tracer.mode(ids):
            model(input_ids=ids, use_cache=False)
    except Exception as error:  # what depends on values fails, and where, depends on the model
        calls.called |= linear.keys()
        refused = brief(error) if tracer.exact and _raised_by_class(error) else ""
    after = _types(model)
    narrowed = (name for name in before.keys() & after.keys() if after[name].itemsize < before[name].itemsize)
    return Trial(
        unused=tuple(sorted((linear.keys() - calls.called) | calls.read)),
        refused=refused,
        clash=tracer.clash,
        retyped=tuple(sorted(narrowed)),
        bound=tracer.bound,
    )


def _types(model: Any) -> dict[str, Any]:
    """Return the types of the buffers of `model` that hold floating-point numbers."""
    return {name: buffer.dtype for name, buffer in model.named_buffers() if buffer.is_floating_point()}


def _raised_by_class(error: Exception) -> bool:
    """Tell whether a model's class raised `error` itself, by a statement of its own."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return {"transformers", "models"} <= {*Path(last.filename).parts} and (last.line or "").startswith("raise ")


def _trace(model: Any, tracer: "_Tracer") -> None:
    """Let `tracer` see what the layers of `model` are given, and which module is at work."""
    from pipelines.checkpoint.names import LAYER

    for name, module in model.named_modules():
        module.register_forward_pre_hook(functools.partial(tracer.enter, name))
        if any(parameter.ndim == 3 for parameter in module.parameters(recurse=False)):
            module.forward = functools.partial(tracer.attempt, module.forward)
        if LAYER.search(f"{name}."):
            stack, _, number = name.rpartition(".")
            if number.isdecimal():
                module.register_forward_pre_hook(functools.partial(tracer.layer, stack), with_kwargs=True)


class _Tracer:
    """A tracer that follows a text through operations, and the values of what all texts share."""

    def __init__(self, tokens: int) -> None:
        self._shape = (1, tokens)
        self.clash = ""
        self.bound: dict[str, str] = {}
        self.exact = True
        """Whether everything until now was computed as the model does it."""
        self._module = ""
        self._kept: list[Any] = []
        """Tensors that are kept alive, because their identities are noted below."""
        self._of_text: set[int] = set()
        """Identities of tensors that depend on the text."""
        self._left: dict[int, str] = {}
        """Identity of a tensor that a layer leaves to later ones → the stack of layers."""
        self._values: dict[int, Any] = {}
        """Identity of a tensor that depends on neither weights nor text, like positions → its values."""

    def mode(self, ids: Any) -> Any:
        """Return the context in which every operation is seen; `ids` are the text."""
        from torch.utils._python_dispatch import TorchDispatchMode

        tracer = self
        self._note(ids, self._of_text.add)

        class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                return tracer.operation(func, args, kwargs or {})

        return Mode()  # type: ignore[no-untyped-call]

    def operation(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what the operation `func` makes of its arguments, and note what that tells of the model."""
        given = [*_tensors((args, kwargs))]
        self._check_types(func, given)
        self.bound |= {self._left[id(tensor)]: READS_TEXT for tensor in given if id(tensor) in self._left}
        known = all(id(tensor) in self._values for tensor in given) and not _unknown(func)
        if known and not any("Tensor" in str(value.type) for value in func._schema.returns):
            return self._compute(func, args, kwargs)  # a number, which decides what the model does next
        made = func(*args, **kwargs)
        if func._schema.is_mutable and not known:
            self._values.clear()  # what looked into the same memory is not known either
        if known and all(tensor.numel() <= KNOWN_SIZE for tensor in _tensors(made)):
            for tensor, value in zip(_tensors(made), _tensors(self._compute(func, args, kwargs)), strict=True):
                self._note(tensor, functools.partial(self._set, value))
        if func.overloadpacket.__name__ not in SHAPES and any(id(tensor) in self._of_text for tensor in given):
            for tensor in (one for one in _tensors(made) if not _is_mask(one)):
                self._note(tensor, self._of_text.add)
        return made

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what `func` makes of known values."""
        return func(*self._valued(args), **self._valued(kwargs))

    def _valued(self, given: Any) -> Any:
        """Return `given` with the values of its tensors."""
        import torch

        if isinstance(given, dict):
            return {name: self._valued(value) for name, value in given.items()}
        if isinstance(given, tuple | list):
            return type(given)(self._valued(value) for value in given)
        if isinstance(given, torch.Tensor):
            return self._values[id(given)]
        return torch.device("cpu") if isinstance(given, torch.device) else given

    def _check_types(self, func: Any, given: list[Any]) -> None:
        """Note the operation if it is on numbers of two types that no device combines."""
        types = [tensor.dtype for tensor in given if tensor.is_floating_point()]
        if not self.exact or self.clash or len({*types}) < 2:
            return
        if func.overloadpacket.__name__ in PRODUCTS:
            self.clash = f"{self._module} multiplies {' by '.join(sorted(map(_type_name, {*types})))}"
        narrower = [one for one in types[1:] if one.itemsize < types[0].itemsize]
        if func.overloadpacket.__name__ in NORMS and narrower:
            self.clash = f"{self._module} scales {_type_name(types[0])} by {_type_name(narrower[0])}"

    def _set(self, value: Any, identity: int) -> None:
        self._values[identity] = value

    def _note(self, tensor: Any, note: Callable[[Any], None]) -> None:
        self._kept.append(tensor)
        note(id(tensor))

    def enter(self, name: str, *_: Any) -> None:
        """Note that the module `name` is at work."""
        self._module = name

    def attempt(self, forward: Any, hidden: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return what experts make of `hidden`, or that itself where only numbers tell which of them it goes to."""
        try:
            return forward(hidden, *args, **kwargs)
        except Exception:  # of any kind: `run`
            self.exact = False
            return hidden if hidden is not None else next(_tensors(kwargs))

    def layer(self, stack: str, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Note what a layer of `stack` gets beside hidden states."""
        hidden = args[0] if args else kwargs.get("hidden_states")
        others = (args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"})
        left = [value for value in kwargs.values() if isinstance(value, MutableMapping) and not isinstance(value, dict)]
        self._left |= {id(tensor): stack for tensor in _tensors([dict(value) for value in left])}
        if any(id(tensor) in self._of_text for tensor in _tensors(others)):
            self.bound.setdefault(stack, READS_TEXT)
        if hidden is not None and tuple(hidden.shape[:2]) != self._shape:
            self.bound[stack] = NO_STATE


def _type_name(dtype: Any) -> str:
    """Return the name of a torch type, like `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def _unknown(func: Any) -> bool:
    """Tell whether the result of `func` is unknown even where its arguments are known, as random numbers are."""
    import torch

    return torch.Tag.nondeterministic_seeded in func.tags or "empty" in func.overloadpacket.__name__


def _is_mask(tensor: Any) -> bool:
    """Tell whether `tensor` holds booleans, which say where a text is padded; texts for calibration are not."""
    import torch

    return bool(tensor.dtype == torch.bool)


def _tensors(value: Any) -> Iterator[Any]:
    """Yield all tensors in `value`, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | tuple | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


class _LinearCalls:
    """The record of which linear modules are called, and which weights are read from outside."""

    def __init__(self, linear: dict[str, Any]) -> None:
        self.called: set[str] = set()
        self.read: set[str] = set()
        for name, module in linear.items():
            weight = module._parameters.pop("weight")
            module.forward = functools.partial(self._call, name, weight, module)
            module.__class__ = type(
                "Linear", (type(module),), {"weight": property(functools.partial(self._read, name, weight))}
            )

    def _call(self, name: str, weight: Any, module: Any, x: Any) -> Any:
        import torch

        self.called.add(name)
        return torch.nn.functional.linear(x, weight, module.bias)

    def compare(self, name: str, module: Any, given: Any, made: Any) -> None:
        """Note the module `name` if what it made has not the shape that a linear one makes, as with groups."""
        if tuple(made.shape) != (*given[0].shape[:-1], len(module.weight)):
            self.read.add(name)

    def _read(self, name: str, weight: Any, _: Any) -> Any:
        self.read.add(name)
        return weight
