"""The whole flow in one place: load, plan, calibrate, quantize, verify, evaluate, gate, package, publish."""

import contextlib
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path

from pipelines.calibrate import calibrate
from pipelines.checkpoint import Checkpoint
from pipelines.errors import bad_input
from pipelines.evaluate import check_tasks, evaluate
from pipelines.gate import Sight, Verdict, gate, sight
from pipelines.models import load_model
from pipelines.overlap import measure_overlap
from pipelines.package import Bundle, Manifest, StageRecord, package, stage_record
from pipelines.plan import Plan, make_plan
from pipelines.publish import publish, published
from pipelines.quantize import quantize
from pipelines.recipe import Recipe, Suite, load_recipe, load_suite
from pipelines.runtime import choose_device
from pipelines.schema import Frozen
from pipelines.scores import Document, Evaluation
from pipelines.store import Meter, Result, cache_dir, digest, package_versions, write_json
from pipelines.verify import verify


class Run(Frozen):
    """What a run came to."""

    manifest: Manifest
    verdict: Verdict
    stages: tuple[StageRecord, ...]
    artifact: Path
    """The quantized checkpoint in the cache, whatever the verdict."""
    published: Path | None
    """Where it was published; None when the gate refused it."""
    record: Path
    """`run.json`."""


def run(
    recipe: Recipe | str = "fp8",
    model: Checkpoint | str | Path | None = None,
    to: Path | str | None = None,
    device: str | None = None,
) -> Run:
    """Take `model` (the default model unless given) through `recipe`, and publish it into `to` if the gate says PASS.

    Each stage's result is kept: the same run again does no work twice, and a killed one goes on where it was.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    checkpoint = model if isinstance(model, Checkpoint) else load_model(model)
    to = Path(to) if to else Path("artifacts") / checkpoint.label / recipe.name
    plan = make_plan(recipe, checkpoint, to)
    _check_destination(plan, to)
    suite = load_suite(recipe.gate.suite)
    check_tasks(suite)
    device = choose_device(device)

    journal = _Journal(plan, to)
    tokens = None
    if recipe.calibrate:
        tokens = calibrate(plan)
        journal.add("calibrate", tokens)
    artifact = quantize(plan, tokens)
    journal.add("quantize", artifact)
    journal.add("verify", verify(artifact, device))
    baseline = evaluate(checkpoint, suite, device)
    journal.add("evaluate baseline", *baseline.tasks)
    _say(foresee(recipe, suite, baseline).sentence(suite.name))
    candidate = evaluate(artifact, suite, device)
    journal.add("evaluate artifact", *candidate.tasks)
    with journal.measure("gate"):
        verdict = gate(baseline, candidate, recipe.gate)
    if tokens:
        journal.add("overlap", measure_overlap(tokens, checkpoint, suite))
    with journal.measure("package"):
        bundle = package(artifact, verdict)
    place = None
    if verdict.verdict == "PASS":
        with journal.measure("publish"):
            place = publish(artifact, verdict, to)
    return journal.close(bundle, verdict, artifact.checkpoint, place)


def foresee(recipe: Recipe, suite: Suite, baseline: Evaluation) -> Sight:
    """What the gate will be able to see, once the baseline's documents and its score above chance are known."""
    counts = {task.task: task.documents for task in baseline.tasks}
    total = sum(task.weight for task in suite.tasks)
    scores = baseline.scores()
    above = sum(task.weight / total * _above_chance(suite, scores[task.task]) for task in suite.tasks)
    return sight(counts, suite, recipe.gate.retention, recipe.quantize.scheme, max(above, 0.01))


def _above_chance(suite: Suite, documents: tuple[Document, ...]) -> float:
    chance = sum(document.chance for document in documents) if suite.policy.chance_correction else 0.0
    return (sum(document.score for document in documents) - chance) / len(documents)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _check_destination(plan: Plan, to: Path) -> None:
    """Refuse a destination that holds something else, before anything is computed."""
    above = next(parent for parent in to.absolute().parents if parent.exists())
    if not above.is_dir():
        raise bad_input(to, f"cannot be made: {above} is not a folder", "give another folder with TO= or --to")
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return
    if (there := published(to)) is None:
        raise bad_input(to, "exists and is not an artifact of quantgate", "give another folder with TO= or --to")
    if there.model.digest != plan.checkpoint.digest or there.recipe != plan.recipe:
        what = (
            f"holds another artifact: {there.model.label}, recipe {there.recipe.name}, with other content or settings"
        )
        raise bad_input(to, what, "give another folder with TO= or --to, or remove it")


class _Journal:
    """`run.json`, rewritten after every stage, so that a killed run has said what it finished."""

    def __init__(self, plan: Plan, to: Path) -> None:
        self._head = {
            "model": plan.checkpoint.label,
            "model_digest": plan.checkpoint.digest,
            "recipe": plan.recipe.model_dump(mode="json"),
            "to": str(to.absolute()),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": package_versions(),
        }
        key = digest([plan.checkpoint.digest, self._head["recipe"], self._head["to"]])
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
        _say(f"{record.stage}: " + ("reused" if record.reused else f"{record.seconds:.1f} s"))
        self._stages.append(record)
        self._results.append({**record.model_dump(), "results": results})
        write_json(self.path, {**self._head, "stages": self._results})

    def close(self, bundle: Bundle, verdict: Verdict, artifact: Path, place: Path | None) -> Run:
        """Add the outcome, and return it."""
        outcome = {"verdict": verdict.verdict, "published": str(place) if place else None, "artifact": str(artifact)}
        manifest = bundle.manifest.model_dump(mode="json")
        write_json(self.path, {**self._head, "stages": self._results, **outcome, "manifest": manifest})
        return Run(
            manifest=bundle.manifest,
            verdict=verdict,
            stages=tuple(self._stages),
            artifact=artifact,
            published=place,
            record=self.path,
        )


def _trace(result: Result) -> dict[str, object]:
    return {"key": result.key, "folder": str(result.folder), "inputs": result.inputs, "reused": result.reused}
