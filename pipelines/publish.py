"""The publish stage: an artifact that passed, its card and its record, appear together or not at all."""

import shutil
from pathlib import Path

from filelock import FileLock

from pipelines.errors import QuantgateError, bad_input
from pipelines.gate import Verdict
from pipelines.package import RECORD, REPORT, Bundle, Manifest, package
from pipelines.quantize import Artifact
from pipelines.report import html
from pipelines.store import cache_dir, digest, file_digest, folder_digests
from pipelines.verify import Verification

SUMS = "SHA256SUMS"


class Refused(QuantgateError):
    """The gate does not let this artifact be published. Exit code 3 for FAIL, 4 for INCONCLUSIVE."""

    def __init__(self, verdict: Verdict, message: str) -> None:
        super().__init__(message)
        self.exit_code = EXIT_CODES[verdict.verdict]


EXIT_CODES = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}


def publish(
    artifact: Artifact,
    verdict: Verdict,
    to: Path | str,
    force: str | None = None,
    verification: Verification | None = None,
) -> Path:
    """Put `artifact` into the folder `to`, if `verdict` is a PASS and belongs to exactly these bytes.

    `force` is a reason to publish without a PASS; it is written into the card and the record. The bytes must be the
    judged ones even then. `verification` is what the verify stage returned; without it the stage is asked again.
    Publishing the same artifact again changes nothing.

    Raises:
        Refused: there is no PASS, and no reason was given.
        BadInput: the verdict is another artifact's, or `to` holds something else.
    """
    to = Path(to).absolute()
    if verdict.verdict != "PASS" and not force:
        raise Refused(verdict, f"not published: the gate says {verdict.verdict} ({'; '.join(verdict.reasons)})")
    _check_bytes(artifact, verdict)
    bundle = package(artifact, verdict, force if verdict.verdict != "PASS" else None, verification)
    to.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_staging(to).with_suffix(".lock")):
        if already := published(to):
            if already.files == artifact.files and already.gate.verdict == verdict.verdict:
                return to
            raise bad_input(
                to, "holds another published artifact", "give another folder with TO= or --to, or remove it"
            )
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise bad_input(to, "exists and is not an artifact of quantgate", "give another folder with TO= or --to")
        staging = _staging(to)
        shutil.rmtree(staging, ignore_errors=True)
        _assemble(artifact, bundle, staging)
        staging.replace(to)
    return to


def published(folder: Path) -> Manifest | None:
    """The record of the artifact published in `folder`, if there is one."""
    try:
        return Manifest.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _staging(to: Path) -> Path:
    """Where to assemble, on the target's own file system so that a rename suffices: the cache if it is there too."""
    cache = cache_dir() / "publish"
    cache.mkdir(parents=True, exist_ok=True)
    if cache.stat().st_dev == to.parent.stat().st_dev:
        return cache / f"{digest(str(to))}.partial"
    return to.parent / f".{to.name}.partial"


def _check_bytes(artifact: Artifact, verdict: Verdict) -> None:
    if folder_digests(artifact.checkpoint) != artifact.files:
        raise bad_input(artifact.checkpoint, "was changed after it was made", "quantize again")
    judged = artifact.digest
    if verdict.candidate_digest != judged:
        what = f"the verdict belongs to other bytes ({verdict.candidate_digest or 'unknown'}, these are {judged})"
        raise bad_input(artifact.checkpoint, what, "evaluate and gate this artifact")


def _assemble(artifact: Artifact, bundle: Bundle, staging: Path) -> None:
    """Copy, write card, record and checksums, and read the copies back before anyone sees them."""
    from tqdm import tqdm

    for name, expected in tqdm(artifact.files.items(), desc="publish", unit="file", delay=1):
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.checkpoint / name, staging / name)
        if file_digest(staging / name) != expected:
            raise QuantgateError(f"{staging / name} was not copied faithfully; is the disk sound?")
    (staging / "README.md").write_text(bundle.card, encoding="utf-8")
    (staging / REPORT).write_text(html([bundle.manifest]), encoding="utf-8")
    (staging / RECORD).write_text(bundle.manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    sums = folder_digests(staging)
    lines = [f"{value}  {name}" for name, value in sorted(sums.items())]
    (staging / SUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")
