"""The publish stage: an artifact that passed appears with its proof, in one place or several, whole or not at all."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from pipelines.checkpoint.headers import Checkpoint
from pipelines.core.cache import cache_dir, digest, folder_digests
from pipelines.core.errors import BadInput, Problem, QuantgateError, bad_input, refuse
from pipelines.core.exit_codes import EXIT_CODES
from pipelines.gating.verdict import Verdict
from pipelines.publishing.bundle import Bundle, Checked, assemble, check
from pipelines.publishing.places.folder import Folder, FolderTarget
from pipelines.publishing.places.place import Target
from pipelines.publishing.places.targets import parse_target
from pipelines.publishing.signature import Signer, Trust, check_trust
from pipelines.quantization.artifact import Artifact, CheckpointArtifact
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.package import make_record
from pipelines.reporting.record import RECORD, Manifest
from pipelines.verification.results import Verification


class Refused(QuantgateError):
    """The error that the gate does not let an artifact be published. Exit code 3 for FAIL, 4 for INCONCLUSIVE."""

    def __init__(self, verdict: Verdict, message: str) -> None:
        super().__init__(message)
        self.exit_code = EXIT_CODES[verdict.verdict]


def publish(
    artifact: Artifact,
    verdict: Verdict,
    to: Path | str | Sequence[Path | str],
    force: str | None = None,
    verification: Verification | None = None,
    signer: Signer | None = None,
) -> tuple[str, ...]:
    """Publish `artifact` to each target of `to`, if `verdict` is a PASS and of these very bytes.

    `force` is a reason to publish without a PASS; it is written into the card and the record. The bytes must be the
    judged ones even then. `verification` is what the verify stage returned; without it the stage is asked again. A
    `signer` signs the bundle. Publishing the same artifact again changes nothing. Returns the targets.

    Raises:
        Refused: there is no PASS, and no reason was given.
        BadInput: the verdict is another artifact's, or a target holds something else.
        QuantgateError: a target could not be reached or written; what others hold by then is whole.
    """
    targets = [parse_target(one) for one in ([to] if isinstance(to, str | Path) else to)]
    bundle = make_bundle(artifact, verdict, force, verification, signer)
    for target in targets:
        put(bundle, target)
    return tuple(map(str, targets))


def make_bundle(
    artifact: Artifact,
    verdict: Verdict,
    force: str | None = None,
    verification: Verification | None = None,
    signer: Signer | None = None,
) -> Bundle:
    """Return the bundle to publish: for a PASS only, or with a reason, and for no bytes but the judged ones.

    Raises:
        Refused: there is no PASS, and no reason was given.
        BadInput: the verdict is another artifact's.
    """
    if verdict.verdict != "PASS" and not force:
        raise Refused(verdict, f"not published: the gate says {verdict.verdict} ({'; '.join(verdict.reasons)})")
    _check_bytes(artifact, verdict)
    record = make_record(artifact, verdict, force if verdict.verdict != "PASS" else None, verification)
    return assemble(artifact, verdict, record, signer)


def put(bundle: Bundle, target: Target) -> None:
    """Publish `bundle` in one place, unless the same artifact is there with the same verdict.

    Raises:
        BadInput: another artifact is published there, or nothing can be put there.
    """
    place = target.open()
    locks = cache_dir() / "publish"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{digest(str(target))}.lock"):
        if there := published(target):
            ours = Manifest.model_validate_json((bundle.path / RECORD).read_text(encoding="utf-8"))
            if there.files == ours.files and there.gate.verdict == ours.gate.verdict:
                return
            raise bad_input(target, "holds another published artifact", "give another target, or remove it")
        place.upload(bundle.path)


def published(target: Target) -> Manifest | None:
    """Return the record of what is published at `target`; None where nothing is, but could be.

    Raises:
        BadInput: there is something else, or nothing can be put there.
        QuantgateError: the place cannot be asked.
    """
    found = _record(target)
    if found is None:
        try_out(target)
    return found


def try_out(target: Target) -> None:
    """Raise `BadInput` if `target` is a folder that turns out to be impossible to make, by trying."""
    if isinstance(target, FolderTarget):
        Folder(target.path).try_out()


def _record(target: Target) -> Manifest | None:
    content = target.open().read(RECORD)
    if content is None:
        return None
    try:
        return Manifest.model_validate_json(content)
    except ValueError:
        what = f"holds a {RECORD} that this version of quantgate cannot read"
        raise bad_input(target, what, "give another target, or use the version that published it") from None


def check_targets(targets: Sequence[Target], checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Refuse targets that hold something else than what this model and recipe would publish.

    It is asked before anything is computed, so that a wrong token is found, too. The model's files are digested only
    where it comes to that.

    Raises:
        BadInput: with every target's problem.
    """
    refuse(problem for target in targets for problem in _objections(target, checkpoint, recipe))


def _objections(target: Target, checkpoint: Checkpoint, recipe: Recipe) -> tuple[Problem, ...]:
    """Return why `target` cannot take what `recipe` makes of `checkpoint`; nothing, if it can."""
    try:
        there = _record(target)
    except BadInput as error:
        return error.problems
    except QuantgateError as error:  # asked for before the run, it is an input that does not work
        return (Problem(str(target), str(error).removeprefix(f"{target}: ")),)
    if there is None or (there.recipe == recipe and there.model.digest == checkpoint.digest):
        return ()
    held = f"{there.model.label}, recipe {there.recipe.name}, with other content or settings"
    return (Problem(str(target), f"holds another artifact: {held}", "give another target, or remove it"),)


def pull(source: str | Path, to: Path, trust: Trust | None = None) -> Checked:
    """Fetch what is published at `source` into the folder `to`, once it was found to be what was published.

    Raises:
        BadInput: nothing is published there, `to` is not empty, or a file of `trust` is not there.
        Tampered: it is not what was published, or not signed by whom `trust` names; `to` is not made.
    """
    if trust:
        check_trust(trust)
    to = to.absolute()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise bad_input(to, "is there already", "give a folder that is not there")
    staging = to.parent / f".{to.name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        parse_target(source).open().download(staging)
        checked = check(staging, trust)
        staging.replace(to)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return checked


def check_published(source: str | Path, trust: Trust | None = None) -> Checked:
    """Hold what is published at `source` against its own proof; what is not in a folder is fetched for that.

    Raises:
        BadInput: nothing is published there, or a file of `trust` is not there.
        Tampered: it is not what was published, or not signed by whom `trust` names.
    """
    if trust:
        check_trust(trust)
    target = parse_target(source)
    if isinstance(target, FolderTarget):
        if not target.path.is_dir():
            raise bad_input(target, "is no folder", "give a published artifact")
        return check(target.path, trust)
    fetched = cache_dir() / "pulled" / digest([str(target)])
    shutil.rmtree(fetched, ignore_errors=True)
    try:
        return pull(source, fetched, trust)
    finally:
        shutil.rmtree(fetched, ignore_errors=True)


def _check_bytes(artifact: Artifact, verdict: Verdict) -> None:
    if folder_digests(artifact.checkpoint) != artifact.files:
        raise bad_input(artifact.checkpoint, "was changed after it was made", "quantize again")
    judged = artifact.digest
    if verdict.candidate_digest != judged:
        what = f"the verdict belongs to other bytes ({verdict.candidate_digest or 'unknown'}, these are {judged})"
        raise bad_input(artifact.checkpoint, what, "evaluate and gate this artifact")
    baseline = verdict.baseline_digest
    if isinstance(artifact, CheckpointArtifact) and baseline and baseline != artifact.source.digest:
        what = f"the verdict's baseline is another model than {artifact.source.label}, which it was made of"
        raise bad_input(artifact.checkpoint, what, "evaluate its own source, and gate the two")
