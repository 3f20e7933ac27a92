"""The calibrate stage: from a calibration set to token ids that every engine and recipe of a model shares."""

from pathlib import Path
from typing import Any

from pipelines.calibration.held_out import HELD_OUT, without_held_out
from pipelines.calibration.self_written import write_samples
from pipelines.calibration.sources import set_file_digests, source_rows
from pipelines.calibration.tokenizing import tokenize
from pipelines.calibration.tokens import CalibrationTokens, save_tokens
from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.limits import language_config, positions
from pipelines.core import progress
from pipelines.core.cache import keep
from pipelines.core.errors import bad_input
from pipelines.planning.plan import Plan
from pipelines.recipe.calibration_set import PackageSource, SelfSource
from pipelines.recipe.load import load_set
from pipelines.recipe.recipe import Calibrate


def calibrate(plan: Plan) -> CalibrationTokens:
    """Make the token ids that `plan`'s recipe asks for, or find them finished.

    Samples are as long as the model has positions, where it has fewer than the recipe asks for.

    Raises:
        BadInput: the recipe has no calibration block, or its set cannot be had, is too small, or holds tokens that the
            model does not know.
    """
    if plan.recipe.calibrate is None:
        raise bad_input(f"recipe {plan.recipe.name}", "has no 'calibrate' block", "its method uses no data")
    checkpoint, wanted = plan.checkpoint, _fitted(plan.recipe.calibrate, plan.checkpoint)
    chosen = load_set(wanted.set)
    tokenizer_files = {name: sha for name, sha in checkpoint.digests.items() if name in checkpoint.companions}
    inputs = {
        "set": chosen.model_dump(),
        "settings": wanted.model_dump(exclude={"set"}),
        "tokenizer": tokenizer_files,
        "files": set_file_digests(chosen, wanted.set),
        "model": [checkpoint.digest, plan.dtype] if isinstance(chosen.source, SelfSource) else None,
    }

    def make(folder: Path) -> dict[str, Any]:
        if isinstance(chosen.source, SelfSource):
            samples, revision = write_samples(plan, chosen.source, wanted), checkpoint.digest
            rows: list[str] = []
        else:
            read, revision = source_rows(chosen, wanted)
            if chosen.name == HELD_OUT and isinstance(chosen.source, PackageSource):
                read = without_held_out(read)
            samples, rows = tokenize(checkpoint, read, wanted)
        return {
            "set": chosen.name,
            "source": chosen.source.model_dump(exclude_none=True),
            "revision": revision,
            "rows": tuple(rows),
            **save_tokens(samples, folder / "tokens.safetensors"),
        }

    return keep("calibrate", inputs, CalibrationTokens, make)


def _fitted(wanted: Calibrate, checkpoint: Checkpoint) -> Calibrate:
    """Return what is wanted, with samples cut to what the model reads at once."""
    most = positions(language_config(checkpoint))
    if most is None or most >= wanted.seq_len:
        return wanted
    progress.say(f"calibrate: samples of {most} tokens, not {wanted.seq_len}: {checkpoint.label} has no more positions")
    return wanted.model_copy(update={"seq_len": most})
