"""`run.json`, the record of a run while it lasts; the outcome of a run, and its report."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipelines.core.cache import Meter, Result, cache_dir, digest, now, package_versions, write_json, write_text
from pipelines.core.exit_codes import EXIT_CODES
from pipelines.core.strict_yaml import Frozen
from pipelines.flow.prepare import Job
from pipelines.flow.remedy import remedies
from pipelines.gating.verdict import Verdict
from pipelines.reporting.package import stage_record
from pipelines.reporting.record import REPORT, Manifest, StageRecord
from pipelines.reporting.report import html, markdown


class Run(Frozen):
    """The outcome of a run."""

    manifest: Manifest
    verdict: Verdict
    stages: tuple[StageRecord, ...]
    artifact: Path
    """Folder of the quantized checkpoint in the cache, whatever the verdict."""
    published: tuple[str, ...]
    """Targets that hold the artifact now; none when the gate refused it."""
    unpublished: dict[str, str]
    """Target → reason why the artifact could not be published there, though the gate let it through."""
    record: Path
    """Path of `run.json`; `report.html` and `report.md` lie beside it."""

    @property
    def report(self) -> Path:
        """Path of `report.html`."""
        return self.record.with_name(REPORT)

    @property
    def exit_code(self) -> int:
        """Exit code of a command that did this run."""
        return 1 if self.unpublished else EXIT_CODES[self.verdict.verdict]


def write_report(runs: Sequence[Manifest], failed: Mapping[str, str] | None = None, folder: Path | None = None) -> Path:
    """Write the report of finished runs, and of those that `failed` (recipe → error), as HTML and as Markdown; return
    the path of the HTML. Both lie with the records of runs unless `folder` says where."""
    if folder is None:
        folder = cache_dir() / "runs" / digest([[run.model_dump(mode="json") for run in runs], failed])
        folder.mkdir(parents=True, exist_ok=True)
    written = remedies(runs)
    write_text(folder / REPORT, html(runs, failed or {}, written))
    write_text((folder / REPORT).with_suffix(".md"), markdown(runs, failed or {}, written))
    return folder / REPORT


class Journal:
    """A run's `run.json`, rewritten after every stage, so that a killed run has said what it finished."""

    def __init__(self, job: Job) -> None:
        checkpoint = job.plan.checkpoint
        self._head = {
            "model": checkpoint.label,
            "model_digest": checkpoint.digest,
            "recipe": job.recipe.model_dump(mode="json"),
            "to": [str(target) for target in job.targets],
            "runtime": job.runtime,
            "device": job.device,
            "dtype": job.plan.dtype,
            "full": job.full,
            "started": now(),
            "versions": package_versions(),
        }
        identity = ("recipe", "to", "runtime", "device", "dtype", "full")
        key = digest([checkpoint.digest, *(self._head[name] for name in identity)])
        self.path = cache_dir() / "runs" / key / "run.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stages: list[StageRecord] = []
        self._results: list[dict[str, object]] = []

    def add(self, name: str, *results: Result) -> None:
        """Note a finished stage: what went in, where its result is, what it cost."""
        self._note(stage_record(name, results), [_trace(result) for result in results])

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Note a stage that keeps no result of its own."""
        meter = Meter()
        yield
        self._note(StageRecord(stage=name, reused=False, **meter.read()), [])

    def _note(self, record: StageRecord, results: list[dict[str, object]]) -> None:
        self._stages.append(record)
        self._results.append({**record.model_dump(), "results": results})
        write_json(self.path, {**self._head, "stages": self._results})

    def close(self, manifest: Manifest, verdict: Verdict, artifact: Path, places: Mapping[str, str | None]) -> Run:
        """Add the outcome, and return it; `places` are the targets, with the reason where there was a failure."""
        published = tuple(target for target, reason in places.items() if reason is None)
        unpublished = {target: reason for target, reason in places.items() if reason is not None}
        outcome = {"verdict": verdict.verdict, "published": published, "unpublished": unpublished}
        made = {"artifact": str(artifact), "manifest": manifest.model_dump(mode="json")}
        write_json(self.path, {**self._head, "stages": self._results, **outcome, **made})
        write_report([manifest], folder=self.path.parent)
        return Run(
            manifest=manifest,
            verdict=verdict,
            stages=tuple(self._stages),
            artifact=artifact,
            published=published,
            unpublished=unpublished,
            record=self.path,
        )


def _trace(result: Result) -> dict[str, object]:
    return {"key": result.key, "folder": str(result.folder), "inputs": result.inputs, "reused": result.reused}
