"""The outcome of a release, for people (report.html, summary.md) and for machines (release.json, junit.xml)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from pydantic import Field

from pipelines.core.cache import cache_dir, digest, now, package_versions, write_json, write_text
from pipelines.core.errors import QuantgateError
from pipelines.core.exit_codes import EXIT_CODES, worst
from pipelines.core.secrets import redact
from pipelines.core.strict_yaml import Frozen
from pipelines.core.text import duration, size
from pipelines.flow.journal import Run
from pipelines.flow.prepare import Job
from pipelines.flow.release_file import Release
from pipelines.flow.remedy import remedies
from pipelines.reporting.pages import Cell, Mark, Note, Section, Table
from pipelines.reporting.record import REPORT, Manifest
from pipelines.reporting.rendering import clean
from pipelines.reporting.report import html, markdown, marked
from pipelines.reporting.sentences import NO_LICENCE, SHORT, both, kept_with_bounds, verdict_line

OUTCOME, JUNIT, SUMMARY = "release.json", "junit.xml", "summary.md"
"""Files that are written beside `report.html`."""


class Item(Frozen):
    """A recipe on a model, and its outcome."""

    model: str
    recipe: str
    targets: tuple[str, ...]
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"] | None = None
    """Verdict of the gate; None where the run did not get that far, or not yet."""
    says: str = ""
    """Verdict in a sentence."""
    error: str | None = None
    """Reason why the run did not get to a verdict."""
    published: tuple[str, ...] = ()
    unpublished: dict[str, str] = Field(default={})
    """Target → reason why it does not hold the artifact that passed."""
    artifact_digest: str | None = None
    seconds: float = 0.0
    """Seconds of all stages, whenever they ran."""
    record: str | None = None
    """Path of the run's `run.json`."""

    @property
    def exit_code(self) -> int:
        """Exit code of a command that did this run alone."""
        if self.error or self.unpublished or self.verdict is None:
            return 1
        return EXIT_CODES[self.verdict]


class Outcome(Frozen):
    """The outcome of a release so far: the content of `release.json`."""

    release: Release
    quantgate: str
    started: str
    finished: str | None
    """Time of the end; None while the release runs."""
    items: tuple[Item, ...]

    @property
    def exit_code(self) -> int:
        """Exit code of the release: the worst of its items'."""
        return worst(item.exit_code for item in self.items)


class OutcomeWriter:
    """Writes the outcome so far in all its forms, anew after every run."""

    def __init__(self, release: Release, jobs: list[Job], out: Path | None) -> None:
        self._release, self._jobs = release, jobs
        self._done: list[Run | QuantgateError] = []
        self._started = now()
        self.folder = (out or cache_dir() / "releases" / digest(release.model_dump(mode="json"))).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(None)

    def add(self, done: Run | QuantgateError) -> None:
        """Note what came of the next job, and write it."""
        self._done.append(done)
        self._write(None)

    def close(self) -> Outcome:
        """Write that the release is over, and return its outcome."""
        return self._write(now())

    def _write(self, finished: str | None) -> Outcome:
        items = [_item(job, done) for job, done in zip(self._jobs, self._done, strict=False)]
        items += [_item(job, None) for job in self._jobs[len(items) :]]
        outcome = Outcome(
            release=self._release,
            quantgate=package_versions()["quantgate"],
            started=self._started,
            finished=finished,
            items=tuple(items),
        )
        runs = [done.manifest for done in self._done if isinstance(done, Run)]
        failed = {f"{item.recipe} on {item.model}": item.error for item in items if item.error}
        top, tried = [_section(outcome, self._done)], remedies(runs)
        write_json(self.folder / OUTCOME, {**outcome.model_dump(mode="json"), "exit_code": outcome.exit_code})
        write_text(self.folder / JUNIT, redact(junit(outcome)))
        write_text(self.folder / SUMMARY, redact(markdown(runs, failed, tried, top)))
        write_text(self.folder / REPORT, redact(html(runs, failed, tried, top)))
        return outcome


def _item(job: Job, done: Run | QuantgateError | None) -> Item:
    known = Item(
        model=job.plan.checkpoint.label, recipe=job.recipe.name, targets=tuple(str(target) for target in job.targets)
    )
    if done is None:
        return known
    if isinstance(done, QuantgateError):
        return known.model_copy(update={"error": redact(str(done))})
    found = {
        "verdict": done.verdict.verdict,
        "says": verdict_line(done.manifest.gate),
        "published": done.published,
        "unpublished": done.unpublished,
        "artifact_digest": done.manifest.artifact_digest,
        "seconds": sum(stage.seconds for stage in done.stages),
        "record": str(done.record),
    }
    return known.model_copy(update=found)


def _section(outcome: Outcome, done: Sequence[Run | QuantgateError]) -> Section:
    """Return the release's table, which stands above the report of its runs."""
    manifests = [run.manifest if isinstance(run, Run) else None for run in done]
    manifests += [None] * (len(outcome.items) - len(manifests))
    columns = ("model", "recipe", "weights", *SHORT.values(), "verdict", "published", "time")
    rows = tuple(_row(item, manifest) for item, manifest in zip(outcome.items, manifests, strict=True))
    notes = [Note(outcome.release.summary)] if outcome.release.summary else []
    notes += [Note(f"{one.model.label}: {NO_LICENCE}") for one in _by_model(manifests) if not one.model.spdx]
    problems = [Note(f"{item.recipe}: {reason}") for item in outcome.items for reason in item.unpublished.values()]
    table = Table("Release", columns, rows, ("recipe", "verdict", "published"))
    return Section(f"Release {outcome.release.name}", (*notes, table, *problems))


def _by_model(manifests: Sequence[Manifest | None]) -> list[Manifest]:
    return list({one.model.digest: one for one in manifests if one}.values())


def _row(item: Item, manifest: Manifest | None) -> tuple[Cell, ...]:
    places = f"{len(item.published)} of {len(item.targets)}"
    if manifest is None:
        said = Mark("error", "bad") if item.error else "to come"
        return item.model, item.recipe, "–", "–", "–", said, places, "–"
    gate = manifest.gate
    weights = f"{size(manifest.size.bytes_before)} → {size(manifest.size.bytes_after)}"
    kept = map(kept_with_bounds, both(gate).values())
    return item.model, item.recipe, weights, *kept, marked(gate), places, duration(item.seconds)


def junit(outcome: Outcome) -> str:
    """Return the outcome in the form that CI services show as tests: a suite for each model, a case for each recipe.

    A case that has not run yet is skipped; whatever gives the release another exit code than 0 is a failure or an
    error.
    """
    root = ElementTree.Element("testsuites", name=outcome.release.name)
    for model in dict.fromkeys(item.model for item in outcome.items):
        items = [item for item in outcome.items if item.model == model]
        suite = ElementTree.SubElement(root, "testsuite", name=model, tests=str(len(items)))
        counts = {"failure": 0, "error": 0, "skipped": 0}
        for item in items:
            case = ElementTree.SubElement(
                suite, "testcase", classname=clean(model), name=clean(item.recipe), time=f"{item.seconds:.3f}"
            )
            if found := _trouble(item):
                kind, name, text = found
                counts[kind] += 1
                ElementTree.SubElement(case, kind, type=name, message=clean(text.splitlines()[0])).text = clean(text)
            said = [item.says, *(f"published {target}" for target in item.published)]
            ElementTree.SubElement(case, "system-out").text = clean("\n".join(filter(None, said)))
        suite.attrib.update(
            failures=str(counts["failure"]), errors=str(counts["error"]), skipped=str(counts["skipped"])
        )
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _trouble(item: Item) -> tuple[Literal["failure", "error", "skipped"], str, str] | None:
    if item.error:
        return "error", "error", item.error
    if item.verdict is None:
        return "skipped", "unfinished", "it has not run yet"
    if item.verdict != "PASS" and item.exit_code:
        return "failure", item.verdict, item.says
    if item.unpublished:
        return "error", "unpublished", "\n".join(item.unpublished.values())
    return None
