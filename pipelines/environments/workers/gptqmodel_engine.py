"""GPTQModel (https://github.com/ModelCloud/GPTQModel): GPTQ and AWQ in the layouts of AutoGPTQ and AutoAWQ."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Report = Callable[[int, int, str], None]
BATCH = 8
"""Samples that go through the model together."""


def commands(report: Report) -> dict[str, Callable[..., Any]]:
    """Return the requests that GPTQModel answers: name → function, which tells its progress to `report`."""

    def quantize(
        source: str,
        to: str,
        tokens: str,
        method: str,
        symmetric: bool,
        group_size: int,
        dynamic: dict[str, dict[str, Any]],
        device: str,
        dampening: float | None = None,
    ) -> dict[str, str]:
        """Quantize the checkpoint in `source` to 4 bits and write it into `to`; `tokens` is the file of `samples`.

        `dynamic` is GPTQModel's own way to say which modules are left out.
        """
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # with one, its loop over layers waits for itself
        import gptqmodel  # type: ignore[import-not-found]  # of another environment
        from gptqmodel import GPTQModel, QuantizeConfig

        settings: dict[str, Any] = {"desc_act": False, "damp_percent": dampening} if method == "gptq" else {}
        if method == "gptq":
            settings["act_group_aware"] = False  # it would reorder columns, which no other layout can hold
        config = QuantizeConfig(
            method=method,
            format="gptq" if method == "gptq" else "gemm",
            bits=4,
            sym=symmetric,
            group_size=group_size,
            dynamic=dynamic or None,
            offload_to_disk=False,
            device=device,
            **settings,
        )
        report(0, 3, "load")
        model = GPTQModel.load(source, config, trust_remote_code=False)
        report(1, 3, "quantize")
        # Its own choice for AWQ is a kernel for CUDA, even where there is none.
        backend = {"backend": "awq_torch"} if method == "awq" and device == "cpu" else {}
        model.quantize(samples(tokens), batch_size=BATCH, calibration_sort=None, **backend)
        report(2, 3, "save")
        model.save(to)
        return {"version": gptqmodel.__version__}

    return {"quantize": quantize}


def samples(tokens: str) -> list[dict[str, list[int]]]:
    """Return the calibration samples in the file `tokens`, a JSON file of lists of token ids."""
    rows: list[list[int]] = json.loads(Path(tokens).read_text(encoding="utf-8"))
    return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
