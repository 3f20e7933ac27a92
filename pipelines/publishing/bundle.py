"""The bundle: an artifact that was let through, and all that proves what it is.

It is assembled once, so that every place that it is published to gets the same bytes.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.core.cache import Result, file_digest, folder_digests, keep
from pipelines.core.errors import QuantgateError, brief
from pipelines.core.records import parse_json
from pipelines.core.strict_yaml import Frozen
from pipelines.gating.verdict import Verdict
from pipelines.publishing.documents import DOCUMENTS, judge_again, write_documents
from pipelines.publishing.places.place import SUMS
from pipelines.publishing.signature import SIGNATURE, Signer, Trust, check_signature, sign
from pipelines.publishing.statement import PROVENANCE, contradictions, statement
from pipelines.quantization.artifact import Artifact
from pipelines.reporting.card import card
from pipelines.reporting.hub_results import hub_results
from pipelines.reporting.record import CARD, RECORD, REPORT, Manifest
from pipelines.reporting.report import html
from pipelines.serving.published import FOLDER, NAMES, published_configs

HUB_RESULTS = ".eval_results/quantgate.yaml"
OURS = frozenset({CARD, REPORT, RECORD, DOCUMENTS, HUB_RESULTS, PROVENANCE, *NAMES.values()})
"""Names of the files that a bundle may hold beside the artifact's own, `SHA256SUMS` and the signature."""


class Bundle(Result):
    """An artifact and its proof as one folder, ready to be published."""

    files: dict[str, str]
    """SHA-256 of every file below `path`, the signature's and `SHA256SUMS`' too."""

    @property
    def path(self) -> Path:
        """Folder whose files are published."""
        return self.folder / "files"


class Tampered(QuantgateError):
    """The error that a published artifact is not what was published, or not of whom it should be. Exit code 1."""


def assemble(artifact: Artifact, verdict: Verdict, manifest: Manifest, signer: Signer | None = None) -> Bundle:
    """Return `artifact` and its proof as one folder, with checksums and, by a `signer`, a signature.

    It is made once for each record and signer. Weights are links to the artifact's: they take no room.
    """
    inputs = {
        "artifact": artifact.files,
        "record": manifest.model_dump(mode="json", exclude={"created", "stages"}),
        "signer": _identity(signer),
    }

    def make(folder: Path) -> dict[str, Any]:
        target = folder / "files"
        for name in artifact.files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            _link(artifact.checkpoint / name, target / name)
        _write_proof(target, artifact, manifest, verdict)
        if signer:
            sign(target, signer)
        return {"files": folder_digests(target)}

    return keep("bundle", inputs, Bundle, make, lambda found: folder_digests(found.path) == found.files)


def _identity(signer: Signer | None) -> Any:
    """Return what makes a signature another one: the key and its certificates, by the digests of their files."""
    if signer is None or signer.key is None:
        return signer.model_dump(mode="json") if signer else None
    return [file_digest(path) for path in (signer.key, signer.certificate, *signer.chain) if path]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _write_proof(target: Path, artifact: Artifact, manifest: Manifest, verdict: Verdict) -> None:
    (target / CARD).write_text(card(manifest, artifact.source.left_behind), encoding="utf-8")
    (target / REPORT).write_text(html([manifest]), encoding="utf-8")
    record = manifest.model_dump_json(indent=2)
    try:
        Manifest.model_validate_json(record)  # JSON has no infinity, and what cannot be read is no proof
    except ValidationError as error:
        raise QuantgateError(f"the record cannot be read again: {brief(error)}; nothing was published") from None
    (target / RECORD).write_text(record + "\n", encoding="utf-8")
    baseline, candidate, *_ = verdict.evaluations
    write_documents(baseline, candidate, target / DOCUMENTS)
    (target / HUB_RESULTS).parent.mkdir(exist_ok=True)
    (target / HUB_RESULTS).write_text(hub_results(manifest), encoding="utf-8")
    (target / FOLDER).mkdir(exist_ok=True)
    for name, text in published_configs(artifact.checkpoint).items():
        (target / name).write_text(text, encoding="utf-8")
    said = statement(manifest, folder_digests(target))
    (target / PROVENANCE).write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [f"{value}  {name}" for name, value in sorted(folder_digests(target).items())]
    (target / SUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")


class Checked(Frozen):
    """A published artifact in which nothing was found wrong."""

    manifest: Manifest
    files: int
    bytes: int
    signature: str
    """Sentence on the artifact's signature: whether there is one, and whether it is trusted."""


def check(folder: Path, trust: Trust | None = None) -> Checked:
    """Hold what was published in `folder` against its own proof, and its signature against `trust`.

    Without a signature of somebody whom one trusts this shows that nothing was damaged or mixed up, not who made it.

    Raises:
        Tampered: with everything that is wrong.
    """
    found = folder_digests(folder)
    problems = _sums(folder, found)
    manifest = _manifest(folder)
    if manifest is None:
        raise Tampered(_listed(folder, [*problems, f"there is no {RECORD} that can be read"]))
    problems += _contents(folder, manifest, found)
    if trust and (reason := check_signature(folder, trust)):
        problems.append(reason)
    if problems:
        raise Tampered(_listed(folder, problems))
    signed = (folder / SIGNATURE).is_file()
    signature = "signed by whom you trust" if trust else "signed, by whom was not asked" if signed else "not signed"
    size = sum((folder / name).stat().st_size for name in found)
    return Checked(manifest=manifest, files=len(found), bytes=size, signature=signature)


def _listed(folder: Path, problems: list[str]) -> str:
    return f"{folder} is not what was published:" + "".join(f"\n    {problem}" for problem in problems)


def _sums(folder: Path, found: dict[str, str]) -> list[str]:
    """Return sentences on the differences between the files and `SHA256SUMS`."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: value for value, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError):
        return [f"there is no {SUMS} that can be read"]
    present = {name: value for name, value in found.items() if name not in (SUMS, SIGNATURE)}
    problems = [f"{name} is missing" for name in sorted(sums.keys() - present.keys())]
    problems += [f"{name} was added" for name in sorted(present.keys() - sums.keys())]
    return problems + [f"{name} was changed" for name in sorted(sums) if present.get(name, sums[name]) != sums[name]]


def _manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _contents(folder: Path, manifest: Manifest, found: dict[str, str]) -> list[str]:
    """Return sentences on card, verdict, statement and files that do not belong together; checksums would not tell."""
    own = {name: value for name, value in found.items() if name not in OURS | {SUMS, SIGNATURE}}
    problems = [] if own == manifest.files else [f"the verdict in {RECORD} is of other files than these"]
    if manifest.gate.verdict != "PASS" and not manifest.gate.forced:
        problems.append(f"its gate said {manifest.gate.verdict}")
    with contextlib.suppress(OSError):
        if manifest.artifact_digest not in (folder / CARD).read_text(encoding="utf-8", errors="replace"):
            problems.append(f"{CARD} is the card of another artifact")
    problems += judge_again(manifest, folder / DOCUMENTS)
    try:
        said = parse_json((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [*problems, f"there is no {PROVENANCE} that can be read"]
    subjects = {name: value for name, value in found.items() if name not in (PROVENANCE, SUMS, SIGNATURE)}
    return problems + contradictions(said, manifest, subjects)
