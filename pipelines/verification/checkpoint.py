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
from pipelines.core.errors import QuantgateError, bad_input
from pipelines.planning.plan import Module
from pipelines.quantization.artifact import Artifact
from pipelines.quantization.files import read_rows
from pipelines.quantization.written import read_smoothing, rows_at_a_time
from pipelines.runtimes.amounts import DISTANCE_CHUNKS, DISTANCE_CONTEXT
from pipelines.runtimes.distance import chunks, measure_distance, write_logprobs
from pipelines.runtimes.generation import generate
from pipelines.runtimes.loading import explained, load_for_inference
from pipelines.verification import reader

if TYPE_CHECKING:
    import torch
from pipelines.runtimes.probe import CONTINUATION, PROMPT
from pipelines.verification.results import LayerError, Verification, _failed, fail, layer_error, worst_loss

BLOCK_ELEMENTS = 1 << 22
SCALES = ("_scale", "_scale_2", ".scales")
"""How the names of scales end."""
WORST_LAYER = 7.0
"""Decibels that each layer keeps at least. Seen: 9 of random weights in NVFP4, more of everything else; a scale that is
half or twice what it should be leaves 6 or 0, weights of another layer -3."""


def verify(artifact: Artifact, device: str, computes: ComputeDtype, inputs: dict[str, Any]) -> Verification:
    """The verify stage of a checkpoint. It keeps its result here, so that an edit of this module makes it run again.

    Raises:
        QuantgateError: with everything that is wrong with it.
    """
    inputs["reader"] = reader.identity(artifact)

    def make(folder: Path) -> dict[str, Any]:
        problems: list[str] = []
        stored = read_checkpoint(artifact.checkpoint)
        _check_companions(artifact, problems)
        _check_tensors(artifact, stored, problems)
        fail(artifact, problems)
        layers = tuple(_layer_errors(artifact, stored, problems))
        _check_kept(artifact, stored, problems)
        bits = stored.weight_bytes * 8 / artifact.source.parameters
        if stored.weight_bytes != artifact.plan.bytes_after:
            problems.append(f"holds {stored.weight_bytes} bytes of tensors, the plan says {artifact.plan.bytes_after}")
        fail(artifact, problems)
        spoken = _speak(artifact, device, computes, folder, problems)
        problems += worst_loss(spoken["loss_before"], spoken["loss_after"])
        if not all(map(math.isfinite, spoken["distance"].model_dump().values())):  # after the reader, who says why
            problems.append("what it computes on plain text is not a number")
        fail(artifact, problems)
        return {
            "quantized": len(layers),
            "kept": len(artifact.source.tensors) - len(layers),
            "dropped": (),
            "layers": layers,
            "bytes_before": artifact.source.weight_bytes,
            "bytes_after": stored.weight_bytes,
            "bits_per_weight": bits,
            **spoken,
        }

    return keep("verify", inputs, Verification, make)


def _check_companions(artifact: Artifact, problems: list[str]) -> None:
    for name in artifact.source.companions:
        if artifact.files.get(name) != artifact.source.digests[name]:
            problems.append(f"{name} differs from the source's")


def _check_tensors(artifact: Artifact, stored: Checkpoint, problems: list[str]) -> None:
    expected = artifact.plan.stored
    found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in stored.tensors}
    problems += [f"tensor {name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"tensor {name} is not in the plan" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            problems.append(f"tensor {name} is {found[name]}, the plan says {expected[name]}")


def _check_kept(artifact: Artifact, stored: Checkpoint, problems: list[str]) -> None:
    """Tensors that are not quantized are the source's, byte for byte, but for norms that absorbed a smoothing."""
    by_name = {tensor.name: tensor for tensor in stored.tensors}
    for tensor in artifact.source.tensors:
        module, _, parameter = tensor.name.rpartition(".")
        if module in artifact.plan.quantized and parameter == "weight":
            continue
        if tensor.name not in artifact.written.rescaled and not _same_bytes(artifact, tensor, by_name[tensor.name]):
            problems.append(f"tensor {tensor.name} should have been kept and was changed")


def _same_bytes(artifact: Artifact, ours: TensorInfo, theirs: TensorInfo) -> bool:
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


def _layer_errors(artifact: Artifact, stored: Checkpoint, problems: list[str]) -> Iterator[LayerError]:
    source = {tensor.name: tensor for tensor in artifact.source.tensors}
    target = {tensor.name: tensor for tensor in stored.tensors}
    _check_scales(artifact, target, problems)
    smoothing = read_smoothing(artifact.folder)
    for module in progress.track(artifact.plan.quantized.values(), "verify", "layer"):
        yield _layer_error(artifact, module, source, target, smoothing, problems)


def _check_scales(artifact: Artifact, target: dict[str, TensorInfo], problems: list[str]) -> None:
    """Every scale, of weights, activations, keys and values, is a positive number."""
    import torch

    own = {tensor.name for tensor in artifact.source.tensors}
    for name, tensor in target.items():
        if name in own or not name.endswith(SCALES) or tensor.dtype == "U8":  # an E8M0 exponent is always positive
            continue
        scale = read_rows(artifact.checkpoint, tensor).float()
        if not (torch.isfinite(scale) & (scale > 0)).all():
            problems.append(f"{name} holds zeros, negative numbers, NaN or infinities")


def _layer_error(
    artifact: Artifact,
    module: Module,
    source: dict[str, TensorInfo],
    target: dict[str, TensorInfo],
    smoothing: "dict[str, torch.Tensor]",
    problems: list[str],
) -> LayerError:
    import torch

    rows = module.shape[0]
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
    return found


def _dequantized(
    artifact: Artifact, module: Module, target: dict[str, TensorInfo], first: int, last: int
) -> "torch.Tensor":
    """Rows `first` to `last` of a module's stored weight, in float32."""
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


def _speak(artifact: Artifact, device: str, dtype: ComputeDtype, scratch: Path, problems: list[str]) -> dict[str, Any]:
    """Load source and artifact in transformers, one after the other: how far apart they are on held-out text, and what
    the artifact writes. Then let its reader load it."""
    import torch

    def broken(why: str) -> QuantgateError:
        return _failed(artifact, [f"transformers cannot compute with it: {why}"])

    tokenizer = load_tokenizer(artifact.source)
    ids = tokenizer(held_out(artifact.calibration, 8 * DISTANCE_CHUNKS * DISTANCE_CONTEXT))["input_ids"]
    file = scratch / "logprobs"
    model = load_for_inference(artifact.source.folder, device, dtype)
    config = model.config.get_text_config(decoder=True)
    check_tokens(artifact.source.folder, tokenizer, ids, config)
    most = positions(config) or len(ids)
    text = chunks(ids, most)
    with explained(
        lambda why: bad_input(
            artifact.source.folder / "config.json",
            f"transformers cannot compute with the model that it makes: {why}",
            "mend it, or give another model",
        )
    ):
        write_logprobs(model, text, file)
    del model
    gc.collect()  # a model is full of cycles, and two are not to be in memory
    model = load_for_inference(artifact.checkpoint, device, dtype)
    with explained(broken):
        distance = measure_distance(model, text, file)
    file.unlink()
    if not math.isfinite(distance.perplexity_before):
        what = "what its model computes on plain text is not a number, so that nothing can be measured against it"
        raise bad_input(artifact.source.folder, what, "mend its config.json or its weights")
    with torch.inference_mode():
        prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"][:, : max(1, most - CONTINUATION)].to(device)
        mask = torch.ones_like(prompt)
        written = min(CONTINUATION, most - prompt.shape[1])
        with explained(broken):
            output = generate(model, prompt, mask, max_new_tokens=written, do_sample=False)
    ours = reader.evaluated(model, artifact, PROMPT, tokenizer(PROMPT)["input_ids"])
    del model
    gc.collect()
    return {
        "loss_before": math.log(distance.perplexity_before),
        "loss_after": math.log(distance.perplexity_after),
        "agreement": distance.same_top,
        "continuation": tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True),
        "distance": distance,
        "reader": reader.read(artifact, ours, device, dtype, scratch, problems),
    }
