"""The verify stage: is the artifact what the plan promised, whole, and does it still speak?

Numbers are compared file against file, a block of rows at a time; only the last check loads the models.
"""

import gc
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.calibration.held_out import held_out
from pipelines.checkpoint.headers import Checkpoint, TensorInfo, read_checkpoint
from pipelines.checkpoint.limits import check_tokens, positions
from pipelines.checkpoint.tokenizer import load_tokenizer
from pipelines.core import progress
from pipelines.core.cache import keep
from pipelines.core.device import ComputeDtype
from pipelines.core.errors import bad_input
from pipelines.planning.plan import Module
from pipelines.quantization.artifact import CheckpointArtifact
from pipelines.quantization.files import read_rows
from pipelines.quantization.written import read_smoothing, rows_at_a_time
from pipelines.runtimes.amounts import DISTANCE_CHUNKS, DISTANCE_CONTEXT
from pipelines.runtimes.distance import Distance, chunks, measure_distance, write_logprobs
from pipelines.runtimes.generation import generate
from pipelines.runtimes.loading import explained, load_for_inference
from pipelines.runtimes.probe import CONTINUATION, PROMPT
from pipelines.verification import reader
from pipelines.verification.results import CheckedLayer, Verification, fail, failed, layer_error, worst_loss

if TYPE_CHECKING:
    import torch

BLOCK_ELEMENTS = 1 << 22
LOGPROBS = "logprobs"
"""Name of the file that holds what the source finds likely."""
SCALES = ("_scale", "_scale_2", ".scales")
"""Endings of the names of scales."""
WORST_LAYER = 7.0
"""Decibels of signal to noise that each layer keeps at least. Seen: 9 of random weights in NVFP4, more of everything
else; a scale that is half or twice what it should be leaves 6 or 0, weights of another layer -3."""


def verify(artifact: CheckpointArtifact, device: str, computes: ComputeDtype, inputs: dict[str, Any]) -> Verification:
    """Verify a checkpoint. The result is kept here, so that an edit of this module makes the stage run again.

    Raises:
        QuantgateError: with everything that is wrong with it.
    """
    inputs = {**inputs, "reader": reader.identity(artifact)}
    return keep("verify", inputs, Verification, lambda folder: _check(artifact, device, computes, folder))


def _check(artifact: CheckpointArtifact, device: str, computes: ComputeDtype, scratch: Path) -> dict[str, Any]:
    """Return the fields of a verification of `artifact`; files go into `scratch` for a while."""
    stored = read_checkpoint(artifact.checkpoint)
    fail(artifact, [*_changed_companions(artifact), *_wrong_tensors(artifact, stored)])
    wrong_scales = [*_wrong_scales(artifact, stored)]
    checked = tuple(_checked_layers(artifact, stored))
    layers = tuple(one.error for one in checked)
    wrong_layers = [problem for one in checked for problem in one.problems]
    fail(artifact, [*wrong_scales, *wrong_layers, *_changed_tensors(artifact, stored), *_wrong_size(artifact, stored)])
    spoken, misread = _speak(artifact, device, computes, scratch)
    losses = worst_loss(spoken["loss_before"], spoken["loss_after"])
    fail(artifact, [*misread, *losses, *_not_a_number(spoken["distance"])])  # the reader, who says why, comes first
    return {
        "quantized": len(layers),
        "kept": len(artifact.source.tensors) - len(layers),
        "dropped": (),
        "layers": layers,
        "bytes_before": artifact.source.weight_bytes,
        "bytes_after": stored.weight_bytes,
        "bits_per_weight": stored.weight_bytes * 8 / artifact.source.parameters,
        **spoken,
    }


def _changed_companions(artifact: CheckpointArtifact) -> Iterator[str]:
    """Yield the files beside the weights that are not the source's."""
    for name in artifact.source.companions:
        if artifact.files.get(name) != artifact.source.digests[name]:
            yield f"{name} differs from the source's"


def _wrong_tensors(artifact: CheckpointArtifact, stored: Checkpoint) -> Iterator[str]:
    """Yield each tensor that is not as the plan says."""
    expected = artifact.plan.stored
    found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in stored.tensors}
    yield from (f"tensor {name} is missing" for name in sorted(expected.keys() - found.keys()))
    yield from (f"tensor {name} is not in the plan" for name in sorted(found.keys() - expected.keys()))
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            yield f"tensor {name} is {found[name]}, the plan says {expected[name]}"


def _changed_tensors(artifact: CheckpointArtifact, stored: Checkpoint) -> Iterator[str]:
    """Yield each kept tensor that is not the source's, byte for byte, but for norms that absorbed a smoothing."""
    by_name = {tensor.name: tensor for tensor in stored.tensors}
    for tensor in artifact.source.tensors:
        module, _, parameter = tensor.name.rpartition(".")
        if module in artifact.plan.quantized and parameter == "weight":
            continue
        if tensor.name not in artifact.written.rescaled and not _same_bytes(artifact, tensor, by_name[tensor.name]):
            yield f"tensor {tensor.name} should have been kept and was changed"


def _wrong_size(artifact: CheckpointArtifact, stored: Checkpoint) -> Iterator[str]:
    """Yield a sentence if the artifact is not as large as the plan says."""
    if stored.weight_bytes != artifact.plan.bytes_after:
        yield f"holds {stored.weight_bytes} bytes of tensors, the plan says {artifact.plan.bytes_after}"


def _not_a_number(distance: Distance) -> Iterator[str]:
    """Yield a sentence if a measure of the artifact is infinite or no number."""
    if not all(map(math.isfinite, distance.model_dump().values())):
        yield "what it computes on plain text is not a number"


def _same_bytes(artifact: CheckpointArtifact, ours: TensorInfo, theirs: TensorInfo) -> bool:
    """Tell whether a tensor of the source and one of the artifact are the same, byte for byte."""
    with (artifact.source.folder / ours.file).open("rb") as a, (artifact.checkpoint / theirs.file).open("rb") as b:
        a.seek(ours.start)
        b.seek(theirs.start)
        left = ours.bytes
        while left:
            size = min(left, 16 << 20)
            if a.read(size) != b.read(size):
                return False
            left -= size
    return True


def _checked_layers(artifact: CheckpointArtifact, stored: Checkpoint) -> Iterator[CheckedLayer]:
    """Yield the error of each quantized module, and the objections to it."""
    source = {tensor.name: tensor for tensor in artifact.source.tensors}
    target = {tensor.name: tensor for tensor in stored.tensors}
    smoothing = read_smoothing(artifact.folder)
    for module in progress.track(artifact.plan.quantized.values(), "verify", "layer"):
        yield _checked_layer(artifact, module, source, target, smoothing)


def _wrong_scales(artifact: CheckpointArtifact, stored: Checkpoint) -> Iterator[str]:
    """Yield every tensor of scales, of weights, activations, keys or values, that holds no positive numbers."""
    import torch

    own = {tensor.name for tensor in artifact.source.tensors}
    for tensor in stored.tensors:
        name = tensor.name
        if name in own or not name.endswith(SCALES) or tensor.dtype == "U8":  # an E8M0 exponent is always positive
            continue
        scale = read_rows(artifact.checkpoint, tensor).float()
        if not (torch.isfinite(scale) & (scale > 0)).all():
            yield f"{name} holds zeros, negative numbers, NaN or infinities"


def _checked_layer(
    artifact: CheckpointArtifact,
    module: Module,
    source: dict[str, TensorInfo],
    target: dict[str, TensorInfo],
    smoothing: "dict[str, torch.Tensor]",
) -> CheckedLayer:
    """Return the error of a module, measured a block of rows at a time."""
    import torch

    rows = module.shape[0]
    problems: list[str] = []
    signal = noise = 0.0
    step = rows if module.packing != "compressed-tensors" else rows_at_a_time(module, BLOCK_ELEMENTS)
    by_column, by_row = smoothing.get(f"{module.name}.columns"), smoothing.get(f"{module.name}.rows")
    for first in range(0, rows, step):
        last = min(rows, first + step)
        weight = read_rows(artifact.source.folder, source[f"{module.name}.weight"], first, last).double()
        stored = _dequantized(artifact, module, target, first, last).double()
        if by_column is not None:  # compare as the engine rounded them: columns that hardly matter were scaled down
            weight = weight * by_column
        if by_row is not None:
            weight = weight / by_row[first:last, None]
        if not torch.isfinite(stored).all():
            problems.append(f"{module.name} dequantizes to NaN or infinities")
        signal += float(weight.square().sum())
        noise += float((weight - stored).square().sum())
    found = layer_error(module.name, signal, noise)
    if found.sqnr < WORST_LAYER:
        what = f"its weights or scales are not those of the source ({found.sqnr:.1f} dB signal to noise)"
        problems.append(f"{module.name}: {what}")
    return CheckedLayer(error=found, problems=tuple(problems))


def _dequantized(
    artifact: CheckpointArtifact, module: Module, target: dict[str, TensorInfo], first: int, last: int
) -> "torch.Tensor":
    """Return rows `first` to `last` of a module's stored weight, in float32."""
    from pipelines.formats import rounding

    assert module.form
    assert module.scheme
    if module.packing != "compressed-tensors":  # whose rows may lie anywhere
        from pipelines.formats.repack import unpack

        whole = {suffix: read_rows(artifact.checkpoint, target[f"{module.name}.{suffix}"]) for suffix in module.parts}
        return rounding.dequantize(*unpack(whole, module.form, module.shape[1]))[first:last]
    rows, parts = module.shape[0], {}
    for suffix, (_, shape) in module.parts.items():
        tensor = target[f"{module.name}.{suffix}"]
        if suffix.startswith("weight") and len(shape) == 2:  # blocks of scales and words of zeros hold several rows
            parts[suffix] = read_rows(
                artifact.checkpoint, tensor, first * shape[0] // rows, -(-last * shape[0] // rows)
            )
        elif suffix == "weight_global_scale":
            parts[suffix] = read_rows(artifact.checkpoint, tensor)
    codes, scales = rounding.unpack(parts, module.scheme, module.group_size, module.shape[1])
    return rounding.dequantize(codes, scales)


def _speak(
    artifact: CheckpointArtifact, device: str, dtype: ComputeDtype, scratch: Path
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Load source and artifact in transformers, one after the other, then let the artifact's reader load it.

    Return how far apart they are on held-out text, with what the artifact writes, and what its reader finds wrong.
    """
    tokenizer = load_tokenizer(artifact.source)
    text = _measure_source(artifact, tokenizer, device, dtype, scratch)
    gc.collect()  # a model is full of cycles, and two are not to be in memory
    model = load_for_inference(artifact.checkpoint, device, dtype)
    with explained(lambda why: failed(artifact, [f"transformers cannot compute with it: {why}"])):
        distance = measure_distance(model, text, scratch / LOGPROBS)
        (scratch / LOGPROBS).unlink()
        if not math.isfinite(distance.perplexity_before):
            what = "what its model computes on plain text is not a number, so that nothing can be measured against it"
            raise bad_input(artifact.source.folder, what, "mend its config.json or its weights")
        continuation = _continuation(model, tokenizer, device)
    ours = reader.evaluated(model, artifact, PROMPT, tokenizer(PROMPT)["input_ids"])
    del model
    gc.collect()
    read = reader.read(artifact, ours, device, dtype, scratch)
    spoken = {
        "loss_before": math.log(distance.perplexity_before),
        "loss_after": math.log(distance.perplexity_after),
        "agreement": distance.same_top,
        "continuation": continuation,
        "distance": distance,
        "reader": read.reader,
    }
    return spoken, read.problems


def _measure_source(
    artifact: CheckpointArtifact, tokenizer: Any, device: str, dtype: ComputeDtype, scratch: Path
) -> "list[list[int]]":
    """Write what the source finds likely on held-out text into `scratch`, and return that text as token ids."""
    ids = tokenizer(held_out(artifact.calibration, 8 * DISTANCE_CHUNKS * DISTANCE_CONTEXT))["input_ids"]
    model = load_for_inference(artifact.source.folder, device, dtype)
    config = model.config.get_text_config(decoder=True)
    check_tokens(artifact.source.folder, tokenizer, ids, config)
    text = chunks(ids, positions(config) or len(ids))
    file = artifact.source.folder / "config.json"
    what = "transformers cannot compute with the model that it makes"
    with explained(lambda why: bad_input(file, f"{what}: {why}", "mend it, or give another model")):
        write_logprobs(model, text, scratch / LOGPROBS)
    return text


def _continuation(model: Any, tokenizer: Any, device: str) -> str:
    """Return what `model` writes after a fixed text, greedily."""
    import torch

    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    most = positions(model.config.get_text_config(decoder=True)) or ids.shape[1] + CONTINUATION
    with torch.inference_mode():
        prompt = ids[:, : max(1, most - CONTINUATION)].to(device)
        written = min(CONTINUATION, most - prompt.shape[1])
        output = generate(model, prompt, torch.ones_like(prompt), max_new_tokens=written, do_sample=False)
    return str(tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True))
