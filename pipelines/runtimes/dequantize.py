"""Quantized checkpoints that transformers does not load in our environment, dequantized by our own code.

Those of other projects (`pipelines.formats.packings`), for which it wants their packages. And mixtures of experts: it
makes one tensor of a layer's experts while it loads, and never rounds what those read, as the kernels of GPUs do. What
it cannot read at all, the plan refuses (`pipelines.planning.readers`).
"""

import json
from pathlib import Path
from typing import Any

import torch

from pipelines.checkpoint.architecture import addresses, model_class
from pipelines.checkpoint.headers import read_checkpoint
from pipelines.checkpoint.names import EXPERTS, expression_matches
from pipelines.core.device import ComputeDtype
from pipelines.core.errors import QuantgateError
from pipelines.formats import rounding
from pipelines.formats.packings import Form, form_of
from pipelines.formats.repack import as_compressed_tensors, unpack
from pipelines.formats.schemes import SCHEMES, config_group, scheme_of


def is_needed(folder: Path, described: dict[str, Any]) -> bool:
    """Tell whether the checkpoint in `folder`, whose `quantization_config` is `described`, is to be loaded here.

    Raises:
        QuantgateError: it is of a variant that nothing here reads.
    """
    return _form(folder, described) is not None or _is_mixture(folder)


def _form(folder: Path, described: dict[str, Any]) -> Form | None:
    beside = folder / "hf_quant_config.json"
    if described.get("quant_method") == "modelopt" and beside.is_file():
        described = {**json.loads(beside.read_text(encoding="utf-8"))["quantization"], **described}
    try:
        return form_of(described)
    except ValueError as error:
        raise QuantgateError(f"{folder}: {error}") from None


def _is_mixture(folder: Path) -> bool:
    scales = (tensor.name for tensor in read_checkpoint(folder).tensors if tensor.name.endswith(".weight_scale"))
    return any(EXPERTS.match(name) for name in scales)


def load(folder: Path, config: Any, dtype: ComputeDtype | None = None) -> Any:
    """Return the model in `folder`, dequantized, with a linear module for each matrix of an expert; in `dtype`, or its
    own.

    Each quantized module has compressed-tensors' `quantization_scheme` and its scales of activations, as transformers
    attaches them to other models; keys and values are rounded where the artifact says so.
    """
    from compressed_tensors.quantization import QuantizationScheme

    from pipelines.runtimes.module_names import linearize_experts, named_alike

    if dtype:
        config.dtype = getattr(torch, dtype)
    state, parts = _read(folder)
    described = config.quantization_config
    form = _form(folder, described)
    groups = {name: _group(name, described, form) for name in parts if form is None or _rounds_inputs(form)}
    caches = {name: state.pop(name) for name in [*state] if name.endswith((".k_scale", ".v_scale"))}
    for name, stored in parts.items():
        state[f"{name}.weight"] = _dequantize(stored, groups.get(name), form).to(config.dtype)
    del config.quantization_config
    _, chosen = model_class(config, folder)
    model = chosen.from_pretrained(None, config=config, state_dict=state, dtype=config.dtype)
    named = addresses(model, parts)
    if any(EXPERTS.match(name) for name in parts):
        linearize_experts(model)
    modules = dict(model.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, torch.nn.Linear)]
    for name, found in named_alike(parts, linear, named).items():
        if "pre_quant_scale" in parts[name]:
            _scale_input(modules[found], parts[name]["pre_quant_scale"])
        if name not in groups:
            continue
        modules[found].quantization_scheme = QuantizationScheme.model_validate(groups[name])
        scales = as_compressed_tensors(parts[name], form) if form else parts[name]
        for suffix in ("input_scale", "input_global_scale"):
            setattr(modules[found], suffix, scales.get(suffix))
    for name, found in named_alike({name.rpartition(".")[0] for name in caches}, modules).items():
        _round_cache(model, modules[found], caches[f"{name}.k_scale"], caches[f"{name}.v_scale"])
    return model


def _read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """Return the tensors that are stored as they are, and the parts of each quantized module's weight."""
    from safetensors.torch import load_file

    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    state: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, suffix = name.replace(".weight.", "|weight.").rpartition("|" if ".weight." in name else ".")
        marks = ("weight_scale", "qweight", "weight.absmax")
        if suffix != "bias" and any(f"{module}.{mark}" in tensors for mark in marks):
            parts.setdefault(module, {})[suffix] = tensor
        else:
            state[name] = tensor
    return state, parts


def _rounds_inputs(form: Form) -> bool:
    return SCHEMES[form.scheme].activations is not None


def _group(name: str, described: Any, form: Form | None) -> Any:
    """Return the group of compressed-tensors' `quantization_config` that a quantized module is in, or would be."""
    if form:
        return config_group(form.scheme, ["Linear"], form.group_size)
    return next(
        group
        for group in described["config_groups"].values()
        if any(target in ("Linear", name) or expression_matches(target, name) for target in group["targets"])
    )


def _dequantize(stored: dict[str, torch.Tensor], group: Any, form: Form | None) -> torch.Tensor:
    if form:
        return rounding.dequantize(*unpack(stored, form, columns=0))
    scheme, size = scheme_of(group)
    if "weight_shape" in stored:
        columns = int(stored["weight_shape"][1])
    else:
        columns = stored["weight"].shape[1] if "weight" in stored else 2 * stored["weight_packed"].shape[1]
    codes, scales = rounding.unpack(stored, scheme, size, columns)
    return rounding.dequantize(codes, scales)


def _scale_input(module: torch.nn.Module, factors: torch.Tensor) -> None:
    """Multiply what `module` reads with `factors` (columns,), before anything rounds it."""
    module.register_buffer("pre_quant_scale", factors)
    module.register_forward_pre_hook(lambda it, inputs: (inputs[0] * it.pre_quant_scale,))


def _round_cache(model: Any, attention: Any, keys: torch.Tensor, values: torch.Tensor) -> None:
    from compressed_tensors.modeling.kvcache import initialize_hooked_kv_cache, register_key_hook, register_value_hook

    from pipelines.formats.fp8 import round_static

    initialize_hooked_kv_cache(model, attention)
    register_key_hook(attention, lambda _, states: round_static(states, float(keys)))
    register_value_hook(attention, lambda _, states: round_static(states, float(values)))
