"""A release: models × recipes × targets in one file, run as one job that can be resumed.

Everything that can be checked is checked for all models first. Then each recipe is a run of its own: it shares the
baseline's evaluation with the others of its model, its failure does not stop them, and what has finished is not done
again. The outcome is written after every run, for people (report.html, summary.md) and for machines (release.json,
junit.xml).
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipelines.core.device import Dtype
from pipelines.core.errors import Problem, Problems, QuantgateError, refuse
from pipelines.evaluation.subject import Runtime
from pipelines.flow.journal import Run
from pipelines.flow.outcome import Outcome, OutcomeWriter
from pipelines.flow.prepare import Job, prepare, prepare_runtimes, try_targets
from pipelines.flow.release_file import Release
from pipelines.flow.run import attempt, discard_conversions
from pipelines.planning.needs import disk_lacks
from pipelines.publishing.signature import Signer


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
    """Return the jobs of each model. The file's paths are as seen from `folder`.

    `to` takes the place of the file's targets, its paths as seen from the current folder; without `publish` there is
    no target.

    Raises:
        BadInput: with every problem of all models.
    """
    problems = Problems()
    prepared: list[list[Job]] = []
    recipes = [str(folder / name) if name.endswith((".yaml", ".yml")) else name for name in release.recipes]
    targets = list(to) or [text if "://" in text else str(folder / text) for text in release.targets]
    targets = [text.replace("{release}", release.name) for text in targets]
    models = [str(folder / name) if (folder / name).is_dir() else name for name in release.models]
    for model in models:
        places = targets if publish else ()
        if jobs := problems.of(prepare, recipes, (), model, places, device, runtime, full, signer, dtype):
            prepared.append(jobs)
    named = {"models": models, "recipes": recipes, "targets": () if to else targets}
    lines = [pair for key, texts in named.items() for pair in zip(texts, release.places(key), strict=False)]
    problems.found = [_placed(problem, lines) for problem in problems.found]
    problems.found += _shared(prepared)
    if not problems.found:
        problems.found += disk_lacks([job.plan for jobs in prepared for job in jobs])
    refuse(dict.fromkeys(problems.found))
    try_targets(job for jobs in prepared for job in jobs)
    return prepared


def _placed(problem: Problem, places: Iterable[tuple[str, str]]) -> Problem:
    """Return `problem` with the line of the release file that names what it is about; `places` are what the file names,
    a target with its placeholders, and where."""
    for text, place in places:
        if re.fullmatch(re.sub(r"\\\{\w*\\\}", ".*", re.escape(text)), problem.where):
            return Problem(place, f"{problem.where}: {problem.what}", problem.remedy)
    return problem


def _shared(prepared: list[list[Job]]) -> Iterator[Problem]:
    """Yield a problem for each target, and each name of a model, that two jobs would have."""
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
    """Return the names that stand for the job in a target, its model's and its recipe's: of `org/name`, only `name`."""
    return job.plan.checkpoint.label.rpartition("/")[2], job.recipe.name


def run_release(
    release: Release, prepared: list[list[Job]], out: Path | None = None, python: Path | None = None
) -> tuple[Outcome, Path]:
    """Run all jobs (`prepare_release`), one after the other. Return what came of them, and the folder it is written to.

    The folder lies in the cache unless `out` says where. `python` is the interpreter of an environment that has vLLM.
    """
    jobs = [job for of_model in prepared for job in of_model]
    writer = OutcomeWriter(release, jobs, out)
    numbers = itertools.count(1)
    for of_model in prepared:
        for job in of_model:
            writer.add(_one(job, python, f"{next(numbers)} of {len(jobs)}, on {job.plan.checkpoint.label}"))
        discard_conversions(job.plan for job in of_model)
    return writer.close(), writer.folder


def _one(job: Job, python: Path | None, number: str) -> Run | QuantgateError:
    try:
        python = prepare_runtimes([job], python)
    except QuantgateError as error:
        return error
    return attempt(job, python, number)
