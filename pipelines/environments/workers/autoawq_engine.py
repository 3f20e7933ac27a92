"""AutoAWQ (https://github.com/casper-hansen/AutoAWQ), whose layout of AWQ is everybody's; deprecated."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Report = Callable[[int, int, str], None]
BATCH = 8
"""Samples that go through a layer together."""


def commands(report: Report) -> dict[str, Callable[..., Any]]:
    """Return the requests that AutoAWQ answers: name → function, which tells its progress to `report`."""

    def quantize(source: str, to: str, tokens: str, group_size: int, device: str) -> dict[str, str]:
        """Quantize the checkpoint in `source` to 4 bits and write it into `to`; `tokens` is a JSON file of lists of
        ids, which AutoAWQ joins and cuts to the length of the longest."""
        import awq  # type: ignore[import-not-found]  # of another environment
        import torch
        from awq.quantize import quantizer  # type: ignore[import-not-found]

        def layers(modules: Iterable[int], desc: str) -> Iterator[int]:
            done = [*modules]
            for number in done:
                report(number, len(done), desc)
                yield number

        quantizer.tqdm = layers
        search = quantizer.AwqQuantizer._compute_best_scale

        def search_on_copies(self: Any, x: Any, w_mean: Any, x_mean: Any, inspected: Any, *rest: Any) -> Any:
            """Search for a scale as AutoAWQ does, but on copies of the weights.

            AutoAWQ tries scalings on the weights and restores them from `.cpu()` of their state, which on a CPU is no
            copy: what it then restores is scaled already, and the checkpoint broken.
            """
            state_dict = inspected.state_dict
            inspected.state_dict = lambda: {name: value.clone() for name, value in state_dict().items()}
            try:
                return search(self, x, w_mean, x_mean, inspected, *rest)
            finally:
                del inspected.state_dict

        quantizer.AwqQuantizer._compute_best_scale = search_on_copies
        rows: list[list[int]] = json.loads(Path(tokens).read_text(encoding="utf-8"))
        model = awq.AutoAWQForCausalLM.from_pretrained(
            source,
            torch_dtype=torch.float32 if device == "cpu" else torch.float16,
            trust_remote_code=False,
            safetensors=True,
            device_map=None,
        )
        model.quantize(
            tokenizer=None,
            quant_config={"zero_point": True, "q_group_size": group_size, "w_bit": 4, "version": "GEMM"},
            calib_data=rows,
            n_parallel_calib_samples=BATCH,
            max_calib_samples=len(rows),
            max_calib_seq_len=max(map(len, rows)),
        )
        model.save_quantized(to)
        return {"version": awq.__version__}

    return {"quantize": quantize}
