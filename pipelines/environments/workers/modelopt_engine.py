"""NVIDIA Model Optimizer (https://github.com/NVIDIA/Model-Optimizer): its unified checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Report = Callable[[int, int, str], None]
CONFIGS = {
    "FP8_TENSOR": "FP8_DEFAULT_CFG",
    "NVFP4": "NVFP4_DEFAULT_CFG",
    "W8A8_STATIC": "INT8_SMOOTHQUANT_CFG",
    "W4A16": "INT4_AWQ_CFG",
}
"""Scheme → Model Optimizer's name of the configuration for it."""


def commands(report: Report) -> dict[str, Callable[..., Any]]:
    """Return the requests that Model Optimizer answers: name → function, which tells its progress to `report`."""

    def quantize(
        source: str, to: str, tokens: str, scheme: str, group_size: int | None, kept: list[str], device: str
    ) -> dict[str, str]:
        """Quantize the checkpoint in `source` and write it into `to`; `tokens` is a JSON file of lists of ids."""
        import modelopt  # type: ignore[import-not-found]  # of another environment
        import modelopt.torch.quantization as mtq  # type: ignore[import-not-found]
        import torch
        from modelopt.torch.export import export_hf_checkpoint  # type: ignore[import-not-found]
        from transformers import AutoModelForCausalLM

        rows: list[list[int]] = json.loads(Path(tokens).read_text(encoding="utf-8"))
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", trust_remote_code=False).to(device).eval()
        steps = len(rows) + 1

        def calibrate(quantized: Any) -> None:
            for done, row in enumerate(rows):
                report(done, steps, "calibrate")
                quantized(torch.tensor([row], device=device))

        with torch.inference_mode():
            config = _config(getattr(mtq, CONFIGS[scheme]), kept, group_size if scheme == "W4A16" else None)
            model = mtq.quantize(model, config, calibrate)
            report(len(rows), steps, "save")
            export_hf_checkpoint(model, export_dir=to)
        return {"version": modelopt.__version__}

    return {"quantize": quantize}


def _config(default: dict[str, Any], kept: list[str], group_size: int | None) -> dict[str, Any]:
    """Return Model Optimizer's configuration `default` without the modules `kept`, and with weights in groups of
    `group_size`, unless that is None."""
    rules = [*default["quant_cfg"], *({"quantizer_name": f"{name}.*", "enable": False} for name in kept)]
    if group_size:
        rules = [_regrouped(rule, group_size) if "weight" in rule["quantizer_name"] else rule for rule in rules]
    return {**default, "quant_cfg": rules}


def _regrouped(rule: dict[str, Any], group_size: int) -> dict[str, Any]:
    return {**rule, "cfg": {**rule["cfg"], "block_sizes": {**rule["cfg"]["block_sizes"], -1: group_size}}}
