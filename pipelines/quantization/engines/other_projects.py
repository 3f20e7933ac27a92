"""Engines of other projects, each in an environment of its own: asked through pipes, and only their numbers are taken.

Of what they write, the quantized modules are kept, and norms and biases that smoothing changed. The rest comes from the
source, byte for byte, so that no engine decides about tokenizer, config or the dtype of an embedding.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipelines.calibration.tokens import CalibrationTokens, read_tokens
from pipelines.checkpoint.headers import Checkpoint, TensorInfo, read_checkpoint
from pipelines.core import progress
from pipelines.core.device import choose_device
from pipelines.core.errors import QuantgateError
from pipelines.core.processes import WorkerProcess, clean_variables
from pipelines.environments import isolated
from pipelines.environments.engines import ENGINES, OtherEngine, Setting
from pipelines.environments.isolated import serve
from pipelines.formats.packings import exceptions
from pipelines.formats.repack import check_exact, unpack
from pipelines.formats.rounding import DTYPES, dequantize
from pipelines.formats.schemes import SCHEMES
from pipelines.planning.plan import CheckpointPlan, Module
from pipelines.quantization.files import ArtifactFiles, copy_kept, quantized_module, read_rows
from pipelines.quantization.written import Written, named_kept, packed_config, write_smoothing
from pipelines.recipe.methods import Gptq

FIT_ROUNDS = 4
"""Number of times that the factors of columns and of rows are fitted in turn."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def quantize(plan: CheckpointPlan, tokens: CalibrationTokens | None, folder: Path) -> Written:
    """Let the recipe's engine quantize, and write the artifact's weight files, in its packing, into `folder`.

    What the engine prints is in `engine.log` beside `folder`.

    Raises:
        QuantgateError: the engine failed, or wrote something else than the plan says.
    """
    assert tokens
    raw = folder.parent / "raw"
    raw.mkdir()  # and the engine's current folder: some leave logs there
    handed = folder.parent / "tokens.json"
    handed.write_text(json.dumps(read_tokens(tokens)), encoding="utf-8")
    version, peak = _run_engine(plan, handed, raw, folder.parent / "engine.log")
    handed.unlink()
    written = _write_artifact(plan, read_checkpoint(raw), folder)
    shutil.rmtree(raw)
    return written.model_copy(update={"engine": f"{plan.recipe.engine} {version}", "peak_memory": peak})


def _run_engine(plan: CheckpointPlan, tokens: Path, raw: Path, log: Path) -> tuple[str, int]:
    """Let the engine write its checkpoint into `raw`; return its version, and its peak memory in bytes."""
    engine = ENGINES[plan.recipe.method.engine]
    python = isolated.make(engine.name)
    variables = {**clean_variables(), **OFFLINE}
    variables["PATH"] = f"{python.parent}:{variables.get('PATH', '')}"  # for the compiler it may bring
    job: dict[str, Any] = {"source": str(plan.checkpoint.folder), "to": str(raw), "tokens": str(tokens)}
    with progress.bar(None, engine.name, "step") as bar:

        def see(done: int, total: int, what: str) -> None:
            bar.update_to(done, total)
            progress.note(what)

        command = [str(python), *serve(engine.worker)]
        with WorkerProcess(engine.name, command, variables, log, see, folder=raw) as worker:
            answer: dict[str, str] = worker.ask(
                "quantize", **job, **_settings(plan, engine), device=choose_device(None)
            )
            return answer["version"], worker.peak_memory


def _settings(plan: CheckpointPlan, engine: OtherEngine) -> dict[str, Any]:
    """Return the arguments of the engine's worker besides files and device."""
    method, form = plan.recipe.method, plan.form
    known: dict[Setting, Any] = {
        "method": method.method,
        "scheme": form.scheme,
        "symmetric": SCHEMES[form.scheme].weights.symmetric,
        "group_size": form.group_size,
        "kept": named_kept(plan),
        "dynamic": exceptions(named_kept(plan)),
    }
    if isinstance(method, Gptq):
        known["dampening"] = method.dampening
    return {name: known[name] for name in engine.settings if name in known}


def _write_artifact(plan: CheckpointPlan, raw: Checkpoint, folder: Path) -> Written:
    """Write the artifact's weight files from the engine's checkpoint `raw` and the source."""
    ours, theirs = ({tensor.name: tensor for tensor in each.tensors} for each in (plan.checkpoint, raw))
    _check_parts(plan, theirs)
    changed = frozenset(_changed_tensors(plan, raw, theirs))
    factors: dict[str, torch.Tensor] = {}
    with ArtifactFiles(plan, folder) as files:
        copy_kept(plan, files, changed)
        for name in changed:
            files.write(name, read_rows(raw.folder, theirs[name]).to(DTYPES[ours[name].dtype]))
        for module in progress.track(plan.quantized.values(), "take", "layer"):
            parts = {suffix: _read_part(raw, theirs[f"{module.name}.{suffix}"]) for suffix in module.parts}
            for suffix, part in parts.items():
                files.write(f"{module.name}.{suffix}", part)
            if changed or module.scales_input:
                weight = read_rows(plan.checkpoint.folder, ours[f"{module.name}.weight"]).float()
                factors |= _fit_factors(module, weight, parts)
    if factors:
        write_smoothing(factors, folder)
    return Written(**_config_fields(plan, raw), rescaled=tuple(sorted(changed)))


def _check_parts(plan: CheckpointPlan, theirs: dict[str, TensorInfo]) -> None:
    """Raise QuantgateError unless the engine wrote every part of every module as the plan says."""
    for module in plan.quantized.values():
        for suffix, part in module.parts.items():
            found = theirs.get(f"{module.name}.{suffix}")
            known = found and ("F16" if _is_bfloat16_scale(found) else found.dtype, found.shape)
            if known != part:
                what = f"{found.dtype} {found.shape}" if found else "nothing"
                raise QuantgateError(
                    f"{plan.recipe.engine} wrote {what} as {module.name}.{suffix}, the plan says {part}"
                )


def _is_bfloat16_scale(tensor: TensorInfo) -> bool:
    """Tell whether these are scales as GPTQModel's AWQ stores them, in the dtype of the model; AutoAWQ, whose layout
    that is, has them in float16."""
    return tensor.dtype == "BF16" and tensor.name.endswith(".scales")


def _read_part(raw: Checkpoint, tensor: TensorInfo) -> torch.Tensor:
    """Return a part of a module in the dtype that the plan says, which must hold it exactly."""
    stored = read_rows(raw.folder, tensor)
    if not _is_bfloat16_scale(tensor):
        return stored
    check_exact(stored, torch.float16)
    return stored.half()


def _changed_tensors(plan: CheckpointPlan, raw: Checkpoint, theirs: dict[str, TensorInfo]) -> Iterator[str]:
    """Yield the names of the norms and biases that the engine changed.

    Raises:
        QuantgateError: it changed anything larger that the plan keeps.
    """
    for tensor in plan.checkpoint.tensors:
        if tensor.name not in theirs or quantized_module(plan, tensor):
            continue
        before, after = read_rows(plan.checkpoint.folder, tensor), read_rows(raw.folder, theirs[tensor.name])
        if torch.equal(before.to(after.dtype), after):  # an engine may store another dtype
            continue
        if before.dim() > 1:
            raise QuantgateError(f"{plan.recipe.engine} changed {tensor.name}, which the plan keeps")
        yield tensor.name


def _fit_factors(module: Module, weight: torch.Tensor, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the factors by which smoothing changed a module's weight, fitted since no engine says them; for `verify`.

    Least squares for the columns, then for the rows, in turn, of `columns * weight / rows` to the stored weight. What
    this attributes to smoothing is one number for each row and column, of a whole matrix of rounding errors. Where
    the factors of the columns are stored, they are taken from there.
    """
    assert module.form
    if module.scales_input:
        return {f"{module.name}.columns": 1 / parts["pre_quant_scale"].float()}
    stored = dequantize(*unpack(parts, module.form, module.shape[1]))
    columns, rows = torch.ones(module.shape[1]), torch.ones(module.shape[0])
    for _ in range(FIT_ROUNDS):
        scaled = weight / rows[:, None]
        columns = _ratio((scaled * stored).sum(0), scaled.square().sum(0))
        scaled = weight * columns
        rows = 1 / _ratio((scaled * stored).sum(1), scaled.square().sum(1))
    return {f"{module.name}.columns": columns, f"{module.name}.rows": rows}


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Return `above` / `below` where that is a positive number, and 1 elsewhere."""
    quotient = above / below
    return torch.where(quotient.isfinite() & (quotient > 0), quotient, torch.ones_like(quotient))


def _config_fields(plan: CheckpointPlan, raw: Checkpoint) -> dict[str, Any]:
    """Return the fields of `Written` that say how weights are stored: for today's readers, and for older ones."""
    packing = plan.recipe.engine_packing
    if packing == "modelopt":
        beside = json.loads((raw.folder / "hf_quant_config.json").read_text(encoding="utf-8"))
        return {"quantization_config": raw.config["quantization_config"], "configs": {"hf_quant_config.json": beside}}
    return packed_config(plan)
