"""Verification of a GGUF: every tensor is of the type that the plan predicted, the file says where it comes from, and
llama.cpp finds nearly the same in it as in the unquantized one.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

from pipelines.checkpoint.gguf_file import read_gguf
from pipelines.core import progress
from pipelines.core.cache import keep
from pipelines.environments import llama_build
from pipelines.planning.gguf import GgufTensor
from pipelines.quantization.artifact import GgufArtifact
from pipelines.quantization.gguf.convert import convert, measure_divergence
from pipelines.runtimes.llama_cpp import LlamaProcess
from pipelines.runtimes.probe import CONTINUATION, PROMPT
from pipelines.verification.reader import Reader
from pipelines.verification.results import CheckedLayer, Verification, fail, layer_error, worst_loss

ROWS_ELEMENTS = 1 << 22
PROVENANCE = ("quantgate.version", "quantgate.recipe", "quantgate.source_digest")
ALWAYS = ("general.architecture", "general.name", "tokenizer.ggml.model", "tokenizer.ggml.tokens", *PROVENANCE)
IMATRIX = ("quantize.imatrix.file", "quantize.imatrix.entries_count", "quantgate.calibration_digest")


def verify(artifact: GgufArtifact, device: str, inputs: dict[str, Any]) -> Verification:
    """Verify a GGUF. The result is kept here, so that an edit of this module makes the stage run again.

    Raises:
        QuantgateError: with everything that is wrong with it.
    """
    return keep("verify", inputs, Verification, lambda _: _check(artifact, device))


def _check(artifact: GgufArtifact, device: str) -> dict[str, Any]:
    """Return the fields of a verification of `artifact`, which runs on `device`."""
    stored = read_gguf(artifact.file)
    fail(artifact, [*_wrong_tensors(artifact, stored), *_wrong_metadata(artifact, stored)])
    checked = tuple(_checked_layers(artifact, stored))
    layers = tuple(one.error for one in checked)
    fail(artifact, [problem for one in checked for problem in one.problems])
    distance = measure_divergence(artifact.source, artifact.file, artifact.calibration).distance
    before, after = math.log(distance.perplexity_before), math.log(distance.perplexity_after)
    fail(artifact, worst_loss(before, after))
    with LlamaProcess(artifact.file, device) as llama:
        (continuation,) = llama.generate(llama.tokenize([PROMPT]), CONTINUATION)
    size = sum(int(tensor.n_bytes) for tensor in stored.tensors)
    return {
        "quantized": len(layers),
        "kept": len(stored.tensors) - len(layers),
        "dropped": (),
        "layers": layers,
        "bytes_before": artifact.source.weight_bytes,
        "bytes_after": size,
        "bits_per_weight": size * 8 / artifact.source.parameters,
        "loss_before": before,
        "loss_after": after,
        "agreement": distance.same_top,
        "continuation": continuation,
        "distance": distance,
        "reader": Reader(program="llama.cpp", version=llama_build.version()),
    }


def _wrong_tensors(artifact: GgufArtifact, stored: Any) -> Iterator[str]:
    """Yield each tensor that is not as the plan says."""
    planned = {tensor.name: tensor for tensor in artifact.plan.tensors}
    found = {tensor.name: tensor for tensor in stored.tensors}
    yield from (f"tensor {name} is missing" for name in sorted(planned.keys() - found.keys()))
    yield from (f"tensor {name} is not in the plan" for name in sorted(found.keys() - planned.keys()))
    for name in sorted(planned.keys() & found.keys()):
        kind, shape = found[name].tensor_type.name, tuple(int(size) for size in reversed(found[name].shape))
        if (kind, without_leading_ones(shape)) != (planned[name].type, without_leading_ones(planned[name].shape)):
            said = f"{planned[name].type} {planned[name].shape}"
            yield f"tensor {name} is {kind} {shape}, the plan says {said}"


def without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return `shape` without leading ones, which llama.cpp drops."""
    return without_leading_ones(shape[1:]) if len(shape) > 1 and shape[0] == 1 else shape


def _wrong_metadata(artifact: GgufArtifact, stored: Any) -> Iterator[str]:
    """Yield a sentence on each thing that the file does not say, or says wrongly, of where it comes from."""
    wanted = [*ALWAYS, *(IMATRIX if artifact.plan.method.imatrix else ())]
    if artifact.source.licence:
        wanted.append("general.license")
    if _has_chat_template(artifact):
        wanted.append("tokenizer.chat_template")
    yield from (f"its metadata has no {name}" for name in wanted if name not in stored.fields)
    digest = stored.fields.get("quantgate.source_digest")
    if digest is not None and digest.contents() != artifact.source.digest:
        yield f"its metadata names another source: {digest.contents()}"


def _has_chat_template(artifact: GgufArtifact) -> bool:
    """Tell whether the source has a chat template, which the converter then stores."""
    if "chat_template.jinja" in artifact.source.companions:
        return True
    config = artifact.source.folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))


def _checked_layers(artifact: GgufArtifact, stored: Any) -> Iterator[CheckedLayer]:
    """Yield what each quantized tensor lost."""
    source = {tensor.name: tensor for tensor in read_gguf(convert(artifact.source).file).tensors}
    target = {tensor.name: tensor for tensor in stored.tensors}
    quantized = [tensor for tensor in artifact.plan.tensors if tensor.quantized]
    for tensor in progress.track(quantized, "verify", "tensor"):
        yield _checked_layer(tensor, source[tensor.name], target[tensor.name])


def _checked_layer(tensor: GgufTensor, before: Any, after: Any) -> CheckedLayer:
    """Return what a tensor lost, measured a block of rows at a time."""
    import gguf
    import numpy as np

    ours = after.data.reshape(-1, after.data.shape[-1])
    theirs = before.data.reshape(-1, before.data.shape[-1])
    problems: list[str] = []
    signal = noise = 0.0
    step = max(1, ROWS_ELEMENTS // tensor.shape[-1])
    for first in range(0, len(ours), step):
        weight = theirs[first : first + step].astype(np.float64)
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(ours[first : first + step], after.tensor_type).astype(np.float64)
        if not np.isfinite(values).all():
            problems.append(f"{tensor.name} dequantizes to NaN or infinities")
        signal += float(np.square(weight).sum())
        noise += float(np.square(weight - values).sum())
    return CheckedLayer(error=layer_error(tensor.name, signal, noise), problems=tuple(problems))
