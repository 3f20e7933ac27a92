"""NVIDIA Model Optimizer (https://github.com/NVIDIA/Model-Optimizer): its unified checkpoints of FP8 and NVFP4."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Report = Callable[[int, int, str], None]
CONFIGS = {"FP8_TENSOR": "FP8_DEFAULT_CFG", "NVFP4": "NVFP4_DEFAULT_CFG"}
"""Our names of schemes → its own."""


def commands(report: Report) -> dict[str, Callable[..., Any]]:
    """What can be asked of it."""

    def quantize(source: str, to: str, tokens: str, scheme: str, kept: list[str], device: str) -> dict[str, str]:
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
            model = mtq.quantize(model, _config(getattr(mtq, CONFIGS[scheme]), kept), calibrate)
            report(len(rows), steps, "save")
            export_hf_checkpoint(model, export_dir=to)
        return {"version": modelopt.__version__}

    return {"quantize": quantize}


def _config(default: dict[str, Any], kept: list[str]) -> dict[str, Any]:
    """One of its configurations, with the modules `kept` left out."""
    rules = [*default["quant_cfg"], *({"quantizer_name": f"{name}.*", "enable": False} for name in kept)]
    return {**default, "quant_cfg": rules}
