"""AutoGPTQ (https://github.com/AutoGPTQ/AutoGPTQ), whose layout of GPTQ is everybody's; deprecated."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Report = Callable[[int, int, str], None]
BATCH = 8
"""Samples that go through the model together."""


def commands(report: Report) -> dict[str, Callable[..., Any]]:
    """Return the requests that AutoGPTQ answers: name → function, which tells its progress to `report`."""

    def quantize(source: str, to: str, tokens: str, group_size: int, dampening: float, device: str) -> dict[str, str]:
        """Quantize the checkpoint in `source` to 4 bits and write it into `to`; `tokens` is a JSON file of lists of
        ids. On a CPU, which AutoGPTQ does not know, two names inside it are replaced."""
        import auto_gptq  # type: ignore[import-not-found]  # of another environment
        import torch
        from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP  # type: ignore[import-not-found]
        from transformers import AutoModelForCausalLM

        rows: list[list[int]] = json.loads(Path(tokens).read_text(encoding="utf-8"))
        samples = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
        if device == "cpu":
            _run_on_cpu()
        config = _config(source)
        # Loaded here: its own way refuses to start without CUDA, and lets a config bring code.
        model = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            torch_dtype=torch.float16,  # in which it stores scales, too
            attn_implementation="eager",  # others leave out the mask, which it moves from device to device
            use_safetensors=True,
            trust_remote_code=False,
        )
        settings = auto_gptq.BaseQuantizeConfig(
            bits=4,
            group_size=group_size,
            damp_percent=dampening,
            sym=True,
            desc_act=False,
            model_file_base_name="model",
        )
        wrapped = GPTQ_CAUSAL_LM_MODEL_MAP[config.model_type](model.eval(), False, settings)
        logger = logging.getLogger("auto_gptq.modeling._base")
        logger.setLevel(logging.INFO)
        logger.addHandler(_Layers(report))
        wrapped.quantize(samples, batch_size=BATCH)
        wrapped.save_quantized(to)
        how = " (experimental on a CPU: two names inside it replaced)" if device == "cpu" else ""
        return {"version": f"{auto_gptq.__version__}{how}"}

    return {"quantize": quantize}


def _run_on_cpu() -> None:
    """Replace two names inside AutoGPTQ, so that what it would move to the first GPU stays where it is."""
    import torch
    from auto_gptq.modeling import _base  # type: ignore[import-not-found]

    _base.CUDA_0 = torch.device("cpu")
    torch.cuda.synchronize = lambda *_: None


def _config(source: str) -> Any:
    """Return the config in `source`, as transformers 4, which AutoGPTQ needs, understands it."""
    from transformers import AutoConfig

    values = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
    rope = values.pop("rope_parameters", None)
    if rope:
        values["rope_theta"] = rope.pop("rope_theta", 10000.0)
        values["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    if "dtype" in values:
        values["torch_dtype"] = values.pop("dtype")
    return AutoConfig.for_model(values.pop("model_type"), **values)


class _Layers(logging.Handler):
    """A handler of AutoGPTQ's log that reports the layer it is at."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.match(r"Start quantizing layer (\d+)/(\d+)", record.getMessage()):
            self._report(int(found[1]) - 1, int(found[2]), "layer")
