"""Artifacts of one layer, as runtimes load them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.formats import nvfp4, rounding
from pipelines.formats.schemes import OWN_SCHEMES, SCHEMES, SchemeName, config_group
from pipelines.planning.quantization_config import written_config
from pipelines.quantization.written import fused_names
from pipelines.recipe.methods import Rtn
from pipelines.recipe.recipe import Calibrate, Recipe
from tests.helpers.plans import plan_checkpoint

ROUNDED: list[SchemeName] = [name for name in OWN_SCHEMES if SCHEMES[name].activations]


def linear(name: SchemeName, largest: float, dtype: torch.dtype) -> Any:
    """A module whose input compressed-tensors rounds as the scheme says, with scales measured for `largest`."""
    from compressed_tensors.quantization import QuantizationScheme, QuantizationStatus

    module: Any = torch.nn.Linear(1, 1)
    module.quantization_scheme = QuantizationScheme.model_validate(
        config_group(name, ["Linear"], SCHEMES[name].weights.group_size)
    )
    module.quantization_status = QuantizationStatus.FROZEN
    if name == "NVFP4":  # compressed-tensors takes this attribute wherever it is
        module.input_global_scale = nvfp4.tensor_scale(torch.tensor(largest))
    if name == "FP8_STATIC":
        module.input_scale = torch.tensor([largest / 448]).to(dtype)
    return module


def activations(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """(samples, tokens, features): what a layer may see."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2, 16, 256, generator=generator)
    outliers = normal.clone()
    outliers[:, :, 7] *= 2000
    holes = normal.clone()
    holes[0, 3] = 0  # a token
    holes[1, :, 32:160] = 0  # whole groups
    spread = normal * torch.logspace(-3, 3, 32).view(2, 16, 1)
    ties = torch.arange(-256, 256).view(1, 2, 256).expand(1, 2, 256) / 16
    wide = normal * torch.logspace(-30, 30, 32).view(2, 16, 1)
    given = {"normal": normal, "outliers": outliers, "holes": holes, "spread": spread, "ties": ties}
    given |= {"zeros": torch.zeros(1, 2, 256), "nothing": torch.zeros(1, 0, 256)}
    if dtype != torch.float16:
        given["wide"] = wide
    given["many"] = torch.randn(3, 401, 256, generator=generator)  # more than are rounded at once, and no multiple
    return {kind: values.to(dtype) for kind, values in given.items()}


def artifact(name: SchemeName, source: Path, folder: Path) -> Path:
    """An artifact of any scheme, made here by hand: scales of activations without calibration."""
    size = 32 if SCHEMES[name].resizable else None
    chosen = Rtn(method="rtn", scheme=name, group_size=size)
    calibrate = Calibrate(set="self") if chosen.measures_activations else None
    plan = plan_checkpoint(Recipe(version=1, name="mine", summary="", quantize=chosen, calibrate=calibrate), source)
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    together = fused_names(plan)
    largest = {module: tensors[f"{module}.weight"].abs().amax().float() for module in plan.quantized}
    for module in plan.quantized.values():
        weight = tensors.pop(f"{module.name}.weight")
        tensor_scale = nvfp4.tensor_scale(torch.stack([largest[o] for o in together[module.name]]).amax())
        scales = rounding.find_scales(weight, name, module.group_size, tensor_scale)
        parts = rounding.pack(rounding.quantize(weight, scales), scales, name, weight.dtype)
        given = {
            "weight_shape": torch.tensor(module.shape),
            "input_scale": torch.tensor([2.0 / 448]).to(weight.dtype),
            "input_global_scale": nvfp4.tensor_scale(torch.tensor(2.0)),
        }
        parts |= {suffix: given[suffix] for suffix in module.parts.keys() - parts.keys()}
        tensors |= {f"{module.name}.{suffix}": part for suffix, part in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": written_config(plan)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


IDS = torch.arange(100, 164).view(2, 32)
