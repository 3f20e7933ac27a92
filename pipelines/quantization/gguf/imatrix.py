"""The importance matrix: the mean square of each input column of each linear, over the calibration text, in llama.cpp's
own file format (`llama-imatrix`, GGUF).

Measured by hooks on the model in transformers, which reads the calibration set's own token ids; in a mixture an expert
sees the tokens that the router gives it. Source: llama.cpp's tools/imatrix.
"""

from pathlib import Path
from typing import Any

import torch

from pipelines.calibration.tokens import CalibrationTokens, read_tokens
from pipelines.core import progress
from pipelines.planning.gguf import EXPERT, GgufTensor
from pipelines.planning.plan import GgufPlan
from pipelines.quantization.batches import equal_batches
from pipelines.runtimes.module_names import linearize_experts, named_alike


def write_imatrix(plan: GgufPlan, tokens: CalibrationTokens, file: Path) -> None:
    """Measure the inputs of the linear modules that become the plan's quantized tensors, and write `file`."""
    import gguf
    import numpy as np

    squares = _measure(plan, read_tokens(tokens))
    writer = gguf.GGUFWriter(file, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [f"{tokens.set}, {tokens.samples} samples, digest {tokens.digest}"])
    writer.add_uint32("imatrix.chunk_count", tokens.samples)
    writer.add_uint32("imatrix.chunk_size", max(1, tokens.tokens // tokens.samples))
    for tensor in plan.tensors:
        found = [squares[source] for source in tensor.sources if source in squares]
        if not tensor.quantized or not found:
            continue
        sums, counts = zip(*found, strict=True)
        writer.add_tensor(f"{tensor.name}.in_sum2", np.stack([total.numpy() for total in sums]))
        writer.add_tensor(f"{tensor.name}.counts", np.array(counts, dtype=np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


Squares = dict[str, tuple[torch.Tensor, int]]
"""Weight's name in the checkpoint → sum of squares of its input (columns,) in float32, and number of tokens it saw."""


def _measure(plan: GgufPlan, samples: list[list[int]]) -> Squares:
    """Return the squares of what the plan's quantized tensors read while `samples` of token ids are computed."""
    from transformers import AutoModelForCausalLM

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModelForCausalLM.from_pretrained(plan.checkpoint.folder, dtype=plan.dtype, trust_remote_code=False)
    if any(EXPERT.match(source) for tensor in plan.tensors for source in tensor.sources):
        linearize_experts(model)
    model = model.to(device).eval()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    wanted = [
        source.removesuffix(".weight") for tensor in plan.tensors if _measured(tensor) for source in tensor.sources
    ]
    measures = {name: _SquareSum(linear[found]) for name, found in named_alike(wanted, linear).items()}
    batches = list(equal_batches(samples))
    with torch.inference_mode():
        for batch in progress.track(batches, "imatrix", "batch"):
            model.base_model(batch.to(device), use_cache=False)
    return {f"{name}.weight": (measure.total.cpu(), measure.count) for name, measure in measures.items()}


def _measured(tensor: GgufTensor) -> bool:
    """Tell whether llama.cpp weighs a tensor's rounding errors: not the embedding's, nor the head's, as in its tool."""
    return tensor.quantized and tensor.name not in ("token_embd.weight", "output.weight")


class _SquareSum:
    """The sum of squares of what a linear module reads."""

    def __init__(self, module: Any) -> None:
        self.total = torch.zeros(module.in_features, device=module.weight.device)
        self.count = 0
        module.register_forward_pre_hook(self._see)

    def _see(self, _: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        x = arguments[0].reshape(-1, arguments[0].shape[-1])
        self.total += x.float().square().sum(dim=0)
        self.count += len(x)
