"""A release: models × recipes × targets in one file, run as one job that can be resumed.

Everything that can be checked is checked for all models first. Then each recipe is a run of its own: it shares the
baseline's evaluation with the others of its model, its failure does not stop them, and what has finished is not done
again. The outcome is written after every run, for people (report.html, summary.md) and for machines (release.json,
junit.xml).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal
from xml.etree import ElementTree

from pydantic import Field, model_validator

from pipelines.core.cache import cache_dir, digest, now, package_versions, write_json
from pipelines.core.device import Dtype
from pipelines.core.errors import BadInput, Problem, QuantgateError, refuse
from pipelines.core.secrets import redact
from pipelines.core.strict_yaml import Document, Frozen, fit, place, read
from pipelines.core.text import duration, size
from pipelines.evaluation.stage import Runtime
from pipelines.flow.remedy import remedies
from pipelines.flow.run import Job, Run, attempt, discard, prepare, prepare_runtimes
from pipelines.planning.needs import disk_lacks
from pipelines.publishing.provenance import Signer
from pipelines.publishing.stage import EXIT_CODES, worst
from pipelines.recipe.library import Name
from pipelines.reporting.card import NO_LICENCE, bounds, verdict_line
from pipelines.reporting.history import seconds_of_runs
from pipelines.reporting.pages import Cell, Mark, Note, Section, Table
from pipelines.reporting.record import REPORT, Manifest
from pipelines.reporting.rendering import clean
from pipelines.reporting.report import html, markdown, marked, retained

RECORD, JUNIT, SUMMARY = "release.json", "junit.xml", "summary.md"
"""What is written beside `report.html`."""
Texts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class Release(Frozen):
    """A release file."""

    version: Literal[1]
    name: Name
    """What `{release}` in a target stands for."""
    summary: str = ""
    models: Texts
    """Hub ids (`org/name@revision`) or checkpoint folders, as seen from the file."""
    recipes: Texts
    """Names, or files as seen from the release file."""
    targets: Texts
    """Each gets every artifact that passed; `{release}`, `{model}` and `{recipe}` stand for names."""

    @model_validator(mode="after")
    def _nothing_twice(self) -> "Release":
        for what in ("models", "recipes", "targets"):
            given = getattr(self, what)
            if twice := [one for one in given if given.count(one) > 1]:
                raise ValueError(f"{what} has {twice[0]} twice")
        return self


class Item(Frozen):
    """A recipe on a model, and what came of it."""

    model: str
    recipe: str
    targets: tuple[str, ...]
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"] | None = None
    """None: it did not get that far, or not yet."""
    says: str = ""
    """The verdict in a sentence."""
    error: str | None = None
    """Why it did not get to a verdict."""
    published: tuple[str, ...] = ()
    unpublished: dict[str, str] = Field(default={})
    """Target → why it does not hold the artifact that passed."""
    artifact_digest: str | None = None
    seconds: float = 0.0
    """Of all stages, whenever they ran."""
    record: str | None = None
    """Its run.json."""

    @property
    def exit_code(self) -> int:
        if self.error or self.unpublished or self.verdict is None:
            return 1
        return EXIT_CODES[self.verdict]


class Outcome(Frozen):
    """`release.json`."""

    release: Release
    quantgate: str
    started: str
    finished: str | None
    """None while it runs."""
    items: tuple[Item, ...]

    @property
    def exit_code(self) -> int:
        return worst(item.exit_code for item in self.items)


class Foreseen(Frozen):
    """What a run of the release is going to take: a line of `--dry-run`."""

    model: str
    recipe: str
    targets: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    memory: int
    """Bytes that the stage takes that needs the most."""
    disk: int
    """Bytes below the cache and a folder that is a target."""
    seconds: float
    """Of the stages that finished runs say anything about."""
    unknown: tuple[str, ...]
    """The expensive stages that they say nothing about."""


def load_release(file: Path) -> Release:
    """The release that `file` describes.

    Raises:
        BadInput: with every problem, each with line and column; a path that leads out of the file's folder is one.
    """
    document = read(file)
    release = fit(document, Release)
    refuse([*_escapes(document, "recipes", release.recipes), *_escapes(document, "targets", release.targets)])
    return release


def _escapes(document: Document, key: str, names: Sequence[str]) -> Iterator[Problem]:
    """A file in a pull request must not say what is read and written elsewhere on the machine that runs it."""
    folder = document.path.absolute().parent.resolve()
    for number, name in enumerate(names):
        path = Path(name.removeprefix("file://"))
        local = "://" not in name or name.startswith("file:")
        if local and (path.parts[:1] == ("~",) or not (folder / path).resolve().is_relative_to(folder)):
            remedy = "give a path below the file; any is allowed to --to on the command line"
            remedy = remedy if key == "targets" else "copy it there"
            yield Problem(place(document, (key, number)), f"{name} leads out of the release file's folder", remedy)


def prepare_release(
    release: Release,
    folder: Path,
    to: Sequence[str] = (),
    publish: bool = True,
    device: str | None = None,
    runtime: Runtime = "transformers",
    full: bool = False,
    signer: Signer | None = None,
    dtype: Dtype = "auto",
) -> list[list[Job]]:
    """For each model its jobs, or one `BadInput` with every problem of all. The file's paths are as seen from `folder`.

    `to` takes the place of the file's targets, its paths as seen from the current folder; without `publish` there is
    no target.
    """
    problems: list[Problem] = []
    prepared: list[list[Job]] = []
    recipes = [str(folder / name) if name.endswith((".yaml", ".yml")) else name for name in release.recipes]
    targets = list(to) or [text if "://" in text else str(folder / text) for text in release.targets]
    targets = [text.replace("{release}", release.name) for text in targets]
    for name in release.models:
        model = str(folder / name) if (folder / name).is_dir() else name
        try:
            prepared.append(
                prepare(recipes, (), model, targets if publish else (), device, runtime, full, signer, dtype)
            )
        except BadInput as error:
            problems += error.problems
    problems += _shared(prepared)
    problems += [] if problems else disk_lacks([job.plan for jobs in prepared for job in jobs])
    refuse(dict.fromkeys(problems))
    return prepared


def _shared(prepared: list[list[Job]]) -> Iterator[Problem]:
    """Targets, and names, that two jobs would have."""
    owners: dict[str, Job] = {}
    for job in (job for jobs in prepared for job in jobs):
        for target in map(str, job.targets):
            if other := owners.get(target):
                alike = _names(other) == _names(job)
                remedy = "release them from two files" if alike else "put {model} and {recipe} into it"
                what = " and ".join(f"{one.recipe.name} on {one.plan.checkpoint.label}" for one in (other, job))
                yield Problem(target, f"would hold {what}", remedy)
            owners[target] = job
    labels = [jobs[0].plan.checkpoint.label for jobs in prepared]
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        remedy = "give it once, or release the models of this name from two files"
        yield Problem(f"model {label}", "is given twice", remedy)


def _names(job: Job) -> tuple[str, str]:
    """What stands for the job in a target: of `org/name`, only `name`."""
    return job.plan.checkpoint.label.rpartition("/")[2], job.recipe.name


def run_release(
    release: Release, prepared: list[list[Job]], out: Path | None = None, python: Path | None = None
) -> tuple[Outcome, Path]:
    """Run all jobs (`prepare_release`), one after the other; what came of them, and the folder it is written to.

    The folder lies in the cache unless `out` says where. `python` is the interpreter of an environment that has vLLM.
    """
    jobs = [job for of_model in prepared for job in of_model]
    writer = _Writer(release, jobs, out)
    number = 0
    for of_model in prepared:
        for job in of_model:
            number += 1
            writer.add(_one(job, python, f"{number} of {len(jobs)}, on {job.plan.checkpoint.label}"))
        discard(of_model)
    return writer.close(), writer.folder


def _one(job: Job, python: Path | None, number: str) -> Run | QuantgateError:
    try:
        python = prepare_runtimes([job], python)
    except QuantgateError as error:
        return error
    return attempt(job, python, number)


def foresee_release(prepared: list[list[Job]]) -> tuple[Foreseen, ...]:
    """What each job is going to take; what a model's jobs share counts with the first."""
    return tuple(_foresee(job, first=number == 0) for jobs in prepared for number, job in enumerate(jobs))


def _foresee(job: Job, first: bool) -> Foreseen:
    plan = job.plan
    stages = seconds_of_runs(plan, job.suite, job.runtime, job.device)
    shared = () if first else ("convert", "evaluate baseline", "evaluate source in transformers")
    needs = {kind: [need.needed for need in plan.needs if need.resource == kind] for kind in ("memory", "disk")}
    return Foreseen(
        model=plan.checkpoint.label,
        recipe=plan.recipe.name,
        targets=tuple(map(str, job.targets)),
        bytes_before=plan.bytes_before,
        bytes_after=plan.bytes_after,
        bits_per_weight=plan.bits_per_weight,
        memory=max(needs["memory"], default=0),
        disk=sum(needs["disk"]),
        seconds=sum(seconds for stage, seconds in stages.items() if stage not in shared),
        unknown=tuple(stage for stage in ("quantize", "evaluate artifact") if stage not in stages),
    )


class _Writer:
    """The outcome so far, in all its forms, rewritten after every run."""

    def __init__(self, release: Release, jobs: list[Job], out: Path | None) -> None:
        self._release, self._jobs = release, jobs
        self._done: list[Run | QuantgateError] = []
        self._started = now()
        self.folder = (out or cache_dir() / "releases" / digest(release.model_dump(mode="json"))).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(None)

    def add(self, done: Run | QuantgateError) -> None:
        self._done.append(done)
        self._write(None)

    def close(self) -> Outcome:
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
        write_json(self.folder / RECORD, {**outcome.model_dump(mode="json"), "exit_code": outcome.exit_code})
        _write_text(self.folder / JUNIT, junit(outcome))
        _write_text(self.folder / SUMMARY, markdown(runs, failed, tried, top))
        _write_text(self.folder / REPORT, html(runs, failed, tried, top))
        return outcome


def _write_text(path: Path, text: str) -> None:
    path.write_text(redact(text), encoding="utf-8")


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
    """The release's table, above the report of its runs."""
    manifests = [run.manifest if isinstance(run, Run) else None for run in done]
    manifests += [None] * (len(outcome.items) - len(manifests))
    columns = ("model", "recipe", "weights", "retention", "bounds", "verdict", "published", "time")
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
    time = duration(item.seconds)
    return item.model, item.recipe, weights, retained(gate.retention), bounds(gate), marked(gate), places, time


def junit(outcome: Outcome) -> str:
    """The outcome in the form that CI services show as tests: a suite for each model, a case for each recipe.

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
