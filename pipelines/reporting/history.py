"""Finished runs: how they compare, and what they say about the next."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pipelines.core.cache import cache_dir
from pipelines.core.device import ComputeDtype, processor
from pipelines.core.errors import Problems, bad_input, refuse
from pipelines.core.records import parse_json
from pipelines.core.strict_yaml import Frozen
from pipelines.formats.description import Changes
from pipelines.gating.power import typical_changes
from pipelines.planning.plan import Plan
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.suite import Suite
from pipelines.reporting.record import RECORD, Manifest


def finished() -> list[dict[str, Any]]:
    """Return the records (`run.json`) of finished runs; those of other versions, too, whatever they hold."""
    records = []
    for path in sorted((cache_dir() / "runs").glob("*/run.json")):
        try:
            record = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # being written, or not ours
        if isinstance(record, dict) and record.get("verdict"):
            records.append(record)
    return records


RECORDS = (RECORD, "run.json")
"""Names of files that hold the record of a run."""


class Outcome(Frozen):
    """The verdict on a finished run, and the model that it is on."""

    model: str
    parameters: int
    suite: str
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    retention: float | None


def outcomes(recipe: Recipe) -> tuple[Outcome, ...]:
    """Return what came of finished runs of `recipe`, or of one that makes the same artifact under another name."""
    wanted = _made(recipe.model_dump(mode="json"))
    found = []
    for record in finished():
        try:
            manifest = record["manifest"]
            if _made(manifest["recipe"]) != wanted:
                continue
            judged = {name: manifest["gate"][name] for name in ("verdict", "retention")}
            model = {"model": manifest["model"]["label"], "parameters": manifest["model"]["parameters"]}
            found.append(Outcome.model_validate({**model, **judged, "suite": manifest["evaluation"]["suite"]["name"]}))
        except (KeyError, TypeError, AttributeError, ValueError):
            continue  # of a version that recorded something else
    return tuple(found)


def _made(recipe: dict[str, Any]) -> list[Any]:
    """Return what of a recipe decides its artifact."""
    return [recipe["quantize"], recipe.get("export"), recipe.get("calibrate")]


PRIOR = 500
"""Number of documents that what is typical of a recipe counts as, beside those of earlier runs."""


def changes(recipe: Recipe) -> Changes:
    """Return what changed in earlier runs of the recipe's schemes (of a GGUF, its file type).

    It is over all documents they were judged on, and `PRIOR` more at what is typical: a few documents say little.
    """
    typical = typical_changes(recipe.loss_class)
    flips, squares = _Pooled(typical.discordance), _Pooled(typical.deviation**2)
    artifacts = set()
    for record in finished():
        try:
            manifest = record["manifest"]
            if _kind(manifest["recipe"]["quantize"]) != _kind(recipe.quantize.model_dump(mode="json")):
                continue
            tasks = manifest["gate"]["tasks"]
            changed = [(task["documents"], task["lost"] + task["gained"], task.get("deviation")) for task in tasks]
            what = json.dumps([manifest["files"], manifest["evaluation"]["suite"]], sort_keys=True)
        except (KeyError, TypeError, AttributeError):
            continue  # of a version that recorded something else
        if what in artifacts:
            continue
        artifacts.add(what)
        for documents, flipped, deviation in changed:
            flips.add(documents, flipped / documents)
            if deviation is not None:
                squares.add(documents, deviation**2)
    return Changes(discordance=flips.mean, deviation=math.sqrt(squares.mean), runs=len(artifacts))


class _Pooled:
    """A mean over documents, of which `PRIOR` are at what is typical."""

    def __init__(self, typical: float) -> None:
        self.mean, self._documents = typical, PRIOR

    def add(self, documents: int, mean: float) -> None:
        """Add so many documents with this mean."""
        self._documents += documents
        self.mean += (mean - self.mean) * documents / self._documents


BY_RECIPE = ("calibrate", "quantize", "verify")
"""Names of stages that take as long as the recipe makes them; the others go with the suite."""


def seconds_of_runs(plan: Plan, suite: Suite, runtime: str, device: str) -> dict[str, float]:
    """Return how many seconds each stage is going to take, by its name.

    It is the median of finished runs, in proportion to the parameters of their models: of runs on such a processor in
    the same dtype, of the same method and schemes or on the same suite, runtime and device. A stage that none had is
    left out.
    """
    quantize = plan.recipe.quantize.model_dump(mode="json")
    kind, where = [quantize["method"], _kind(quantize)], [suite.model_dump(mode="json"), runtime, device]
    computes = [plan.dtype, processor()]
    rates: dict[str, list[float]] = defaultdict(list)
    for record in finished():
        try:
            manifest = record["manifest"]
            done = manifest["recipe"]["quantize"]
            if [record["dtype"], manifest["hardware"]["processor"]] != computes:
                continue
            same_kind = [done["method"], _kind(done)] == kind
            same_place = [manifest["evaluation"]["suite"], record["runtime"], record["device"]] == where
            for stage in manifest["stages"]:
                if same_kind if stage["stage"] in BY_RECIPE else same_place:
                    rates[stage["stage"]].append(stage["seconds"] / manifest["model"]["parameters"])
        except (KeyError, TypeError, ZeroDivisionError):
            continue  # of a version that recorded something else
    return {stage: statistics.median(found) * plan.checkpoint.parameters for stage, found in rates.items()}


def _kind(quantize: dict[str, Any]) -> Any:
    rules = sorted(str(rule.get("scheme")) for rule in quantize.get("rules") or ())
    return quantize.get("type") or [quantize["scheme"], rules]


class Ranked(Frozen):
    """A run among others of the same model, suite, runtime and device."""

    manifest: Manifest
    efficient: bool
    """Whether the run is on the frontier of size and quality: no other is smaller and keeps as much, or as small and
    keeps more."""


class Ranking(Frozen):
    """Runs that can be compared, since they share their baseline."""

    model: str
    suite: str
    runtime: str
    device: str
    dtype: ComputeDtype | None
    runs: tuple[Ranked, ...]
    """Runs in order, the smallest artifact first."""
    recommended: int | None
    """Index in `runs` of the smallest that passed; None where none did."""


def compare(runs: Sequence[Manifest]) -> tuple[Ranking, ...]:
    """Return a ranking of `runs` (what `read_runs` returns) for each baseline.

    Retentions of different baselines say nothing about each other.
    """
    apart: dict[str, list[Manifest]] = defaultdict(list)
    for run in runs:
        judged = run.evaluation
        baseline = [run.model.digest, judged.suite.model_dump_json(), judged.runtime, judged.device, judged.dtype]
        apart[json.dumps(baseline)].append(run)
    return tuple(_ranking(alike) for alike in apart.values())


def _ranking(runs: Iterable[Manifest]) -> Ranking:
    ordered = sorted(runs, key=lambda run: (run.size.bytes_after, -_kept(run)))
    ranked = tuple(Ranked(manifest=run, efficient=not any(_beats(other, run) for other in ordered)) for run in ordered)
    passed = (number for number, run in enumerate(ordered) if run.gate.verdict == "PASS")
    judged = ordered[0].evaluation
    return Ranking(
        model=ordered[0].model.label,
        suite=judged.suite.name,
        runtime=judged.runtime,
        device=judged.device,
        dtype=judged.dtype,
        runs=ranked,
        recommended=next(passed, None),
    )


def _kept(run: Manifest) -> float:
    return -1.0 if run.gate.retention is None else run.gate.retention


def _beats(one: Manifest, other: Manifest) -> bool:
    ours, theirs = (one.size.bytes_after, -_kept(one)), (other.size.bytes_after, -_kept(other))
    return ours != theirs and ours[0] <= theirs[0] and ours[1] <= theirs[1]


def read_runs(places: Sequence[Path]) -> list[Manifest]:
    """Return the record of each run, once; `places` are published artifacts, `run.json` files, their folders, or
    folders that such folders lie in, however deep.

    Raises:
        BadInput: some hold no finished run of this version; all are named.
    """
    problems = Problems()
    runs: list[Manifest] = []
    for place in (inner for given in places for inner in _runs_in(given)):
        if (run := problems.of(_read, place)) and run not in runs:  # an artifact and its run.json are one
            runs.append(run)
    refuse(problems.found)
    return runs


def _runs_in(place: Path) -> list[Path]:
    """Return the folders of runs in `place`, or `place` itself where it is one, or is none at all."""
    if not place.is_dir() or any((place / name).is_file() for name in RECORDS):
        return [place]
    return sorted({file.parent for name in RECORDS for file in place.rglob(name)}) or [place]


def _read(place: Path) -> Manifest:
    files = [place] if place.is_file() else [place / name for name in RECORDS]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise bad_input(place, "holds no run", "give a published artifact, a run.json, or a folder of such")
    try:
        record = parse_json(file.read_text(encoding="utf-8"))
        if "stages" in record and "manifest" not in record and "gate" not in record:
            raise bad_input(file, "is of a run that did not finish", "run it again; it goes on where it was")
        return Manifest.model_validate_json(json.dumps(record.get("manifest", record)))
    except (OSError, ValueError, TypeError, AttributeError):
        what = "is not the record of a run by this version of quantgate"
        raise bad_input(file, what, "run it again, or read it with the version that wrote it") from None
