"""The artifact of a plan, loaded by transformers before it exists: the names and shapes that will be in its files, on
the meta device, with the config that it will have."""

import importlib.metadata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipelines.checkpoint.architecture import load_config, load_on_meta, model_class, quiet
from pipelines.core.cache import Result, keep
from pipelines.core.errors import brief
from pipelines.planning.readers import unknown

if TYPE_CHECKING:
    from pipelines.planning.plan import CheckpointPlan


class Rehearsal(Result):
    """The findings of transformers on an artifact that is not made yet."""

    failed: str
    """First line of the error that transformers raised; empty when it loaded the artifact."""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    """Names of tensors that transformers would make up at random, not read, or read in another shape."""
    widened: tuple[str, ...] = ()
    """Names of scales that it would read as another type than it computes in: it makes weights of that type by them."""


def rehearse(plan: "CheckpointPlan") -> Rehearsal:
    """Let transformers load the artifact that `plan` describes, without its weights; what was found is kept."""
    from pipelines.planning.quantization_config import written_config

    described = written_config(plan)
    inputs = {
        "config": {**plan.checkpoint.config, "quantization_config": described},
        "tensors": plan.stored,
        "versions": [importlib.metadata.version(name) for name in ("transformers", "compressed-tensors")],
    }
    return keep("rehearsal", inputs, Rehearsal, lambda _: _rehearse(plan, described))


def unreadable(plan: "CheckpointPlan") -> str:
    """Return why transformers could not load the artifact of `plan`; empty if it could, or is not to."""
    if plan.recipe.packing != "compressed-tensors":
        return ""
    found = rehearse(plan)
    if lost := found.missing or found.unexpected or found.mismatched:
        return f"it would not find or not read {len(lost)} of its tensors, like {lost[0]}"
    if found.widened:
        return f"it would compute with weights of two types, because it widens {found.widened[0]}"
    return found.failed


def _rehearse(plan: "CheckpointPlan", described: dict[str, Any]) -> dict[str, Any]:
    config = load_config(plan.checkpoint.folder)
    config.quantization_config = described
    _, chosen = model_class(config, plan.checkpoint.folder)
    try:
        with quiet():
            model, info = load_on_meta(chosen, config, plan.stored)
    except Exception as error:  # of transformers or compressed-tensors, which share no class
        return {"failed": brief(error)}
    mismatched = (name for name, *_ in info["mismatched_keys"])
    return {
        "failed": "",
        "missing": tuple(sorted(info["missing_keys"])),
        "unexpected": tuple(unknown(info["unexpected_keys"])),
        "mismatched": tuple(sorted(mismatched)),
        "widened": tuple(_widened(model)),
    }


def _widened(model: Any) -> Iterator[str]:
    """Yield each scale in float32 of a `model` in a narrower type, which keeps some of its own parameters in float32
    and takes the scale for one of those by its name."""
    import torch

    kept = {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())}
    for name, parameter in model.named_parameters():
        wide = parameter.dtype == torch.float32 and model.config.dtype in (torch.bfloat16, torch.float16)
        if wide and name.endswith(".weight_scale") and any(word in "weight_scale" for word in kept):
            yield name
