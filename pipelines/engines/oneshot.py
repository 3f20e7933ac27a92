"""llmcompressor: the calibrated methods. Everything peculiar to it stays in this module.

- It is driven by modifier objects, never by its YAML recipes, whose unknown keys become a silent no-op.
- Its session is global: it is reset before and after, so that one run cannot leak into the next.
- It unties tied embeddings and rewrites config and tokenizer when saving: only its weights are taken.
"""

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from pipelines.calibrate import CalibrationTokens, read_tokens
from pipelines.checkpoint import Checkpoint
from pipelines.engines import Written
from pipelines.plan import Plan
from pipelines.recipe import Gptq
from pipelines.schemes import config_group

SHARD_SIZE = "5GB"


def quantize(plan: Plan, tokens: CalibrationTokens, folder: Path) -> Written:
    """Calibrate and write the artifact's weight files into `folder`."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    with contextlib.redirect_stdout(sys.stderr):  # it logs to what is standard output while it is imported
        from llmcompressor import oneshot
        from llmcompressor.core import reset_session
    _silence()
    settings = plan.recipe.quantize
    assert isinstance(settings, Gptq)
    samples = read_tokens(tokens)
    data = Dataset.from_dict({"input_ids": samples, "attention_mask": [[1] * len(sample) for sample in samples]})
    model = AutoModelForCausalLM.from_pretrained(plan.checkpoint.folder, dtype="auto", trust_remote_code=False)
    modifiers, rescaled = _modifiers(plan, settings)
    torch.manual_seed(0)
    reset_session()
    try:
        oneshot(
            model=model,
            dataset=data,
            recipe=modifiers,
            num_calibration_samples=len(samples),
            shuffle_calibration_samples=False,
            max_seq_length=max(len(sample) for sample in samples),
        )
        scratch = folder / "scratch"
        model.save_pretrained(scratch, save_compressed=True, max_shard_size=SHARD_SIZE)
    finally:
        reset_session()
    config = _saved_config(scratch)
    for file in scratch.glob("model*.safetensors*"):
        shutil.move(file, folder / file.name)
    shutil.rmtree(scratch)
    _drop_untied_head(plan.checkpoint, folder)
    return Written(quantization_config=config, rescaled=rescaled)


def _silence() -> None:
    """Turn its log off; its own switch, LLM_COMPRESSOR_LOG_DISABLED, makes its timing code raise."""
    from loguru import logger

    for package in ("llmcompressor", "compressed_tensors"):
        logger.disable(package)


def _modifiers(plan: Plan, settings: Gptq) -> tuple[list[Any], dict[str, tuple[str, ...]]]:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    rescaled: dict[str, tuple[str, ...]] = {}

    class RecordedSmoothQuant(SmoothQuantModifier):  # type: ignore[misc]
        """SmoothQuant that says which norms it changed, which `verify` must know to compare weights."""

        def on_initialize(self, state: Any, **kwargs: Any) -> bool:
            done: bool = super().on_initialize(state, **kwargs)
            names = {module: name for name, module in state.model.named_modules()}
            for mapping in self.resolved_mappings_:
                rescaled[mapping.smooth_name] = tuple(names[module] for module in mapping.balance_layers)
            return done

    gptq = GPTQModifier(
        config_groups=_config_groups(plan, settings),
        ignore=sorted({"lm_head"} | {module.name for module in plan.modules if not module.quantized}),
        dampening_frac=settings.dampening,
    )
    if settings.smoothquant is None:
        return [gptq], rescaled
    return [RecordedSmoothQuant(smoothing_strength=settings.smoothquant), gptq], rescaled


def _config_groups(plan: Plan, settings: Gptq) -> dict[str, Any]:
    """One group for each group size that the plan uses; a single one when it is the same everywhere."""
    by_size: dict[int | None, list[str]] = {}
    for module in plan.quantized.values():
        by_size.setdefault(module.group_size, []).append(module.name)
    if len(by_size) == 1:
        by_size = {size: ["Linear"] for size in by_size}
    groups = {}
    for number, (size, targets) in enumerate(sorted(by_size.items(), key=str)):
        group = config_group(settings.scheme, targets, size)
        group.pop("format")  # llmcompressor decides it when it saves
        groups[f"group_{number}"] = group
    return groups


def _saved_config(scratch: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((scratch / "config.json").read_text())["quantization_config"]
    return config


def _drop_untied_head(source: Checkpoint, folder: Path) -> None:
    """Remove a head that llmcompressor untied and saved though the source holds none (it is the embedding again)."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    head = "lm_head.weight"
    if head in {tensor.name for tensor in source.tensors}:
        return
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            if head not in stored.keys():  # noqa: SIM118 (not a dict)
                continue
            kept = {name: stored.get_tensor(name) for name in stored.keys() if name != head}  # noqa: SIM118
        save_file(kept, file, metadata={"format": "pt"})
