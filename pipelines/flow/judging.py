"""Evaluating baseline and artifact in turn until the verdict is shown."""

from collections.abc import Iterator
from pathlib import Path

from pipelines.checkpoint.dtypes import fits
from pipelines.core import progress
from pipelines.evaluation.looks import LOOKS
from pipelines.evaluation.scores import Evaluation
from pipelines.evaluation.stage import looks
from pipelines.flow.prepare import Job
from pipelines.gating.gate import gate
from pipelines.gating.power import analyze_recipe_power
from pipelines.gating.spending import look_confidence
from pipelines.gating.verdict import Verdict
from pipelines.quantization.artifact import Artifact
from pipelines.recipe.load import expected_documents
from pipelines.reporting.history import changes
from pipelines.reporting.sentences import kept_words
from pipelines.runtimes.distance import Distance


def as_far_as(seen: Evaluation, looked: Iterator[Evaluation]) -> Evaluation:
    """Return the evaluation of as many documents as `seen` has."""
    with progress.bar(seen.documents, "source", "document"):
        return next(found for found in looked if found.documents >= seen.documents)


def judge(job: Job, artifact: Artifact, distance: Distance | None, python: Path | None) -> Verdict:
    """Evaluate baseline and artifact in turn, look by look, until the verdict is shown; to the end, if so asked."""
    plan, confidence = job.plan, job.suite.policy.confidence
    sides = tuple(
        looks(model, job.suite, job.device, job.runtime, python, job.evaluation_dtype, keep_loaded=_fit_both(job))
        for model in (plan.checkpoint, artifact)
    )
    count = expected_documents(job.suite)
    with progress.bar(count and 2 * count, "evaluate", "document"):
        for look, (baseline, candidate) in enumerate(zip(*sides, strict=True)):
            whole = job.full and look == len(LOOKS) - 1
            looked = confidence if whole else look_confidence(look, confidence)
            verdict = gate(baseline, candidate, job.recipe.gate, distance, looked)
            if look == 0 and (seen := analyze_recipe_power(job.recipe, job.suite, changes(job.recipe), baseline)):
                progress.say(seen.sentence(job.suite.name))
            if verdict.retention is not None:
                progress.note(f"so far {kept_words(verdict)}, on {candidate.documents:,} documents")
            if verdict.shown and verdict.spared and not job.full:
                what = f"decided after {candidate.documents} of {candidate.of} documents"
                progress.say(f"{what}: {verdict.reasons[0]}")
            if verdict.shown and not job.full:
                break
    return verdict


def _fit_both(job: Job) -> bool:
    """Tell whether baseline and artifact can be in memory at once; vLLM takes nearly all that a GPU has for one."""
    if job.runtime == "vllm" and job.device != "cpu":
        return False
    return fits(job.plan.checkpoint, job.plan.dtype, models=2, device=job.device)
