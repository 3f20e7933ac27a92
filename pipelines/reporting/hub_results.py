"""The results of a run in the Hugging Face hub's own forms."""

from typing import Any

import yaml

from pipelines.gating.verdict import TaskVerdict
from pipelines.recipe.suite import HubDataset
from pipelines.reporting.record import Manifest
from pipelines.reporting.sentences import kept_with_bounds
from pipelines.reporting.task_table import task_rows


def eval_results(manifest: Manifest) -> list[Any]:
    """Return the artifact's mean scores on each task, as huggingface_hub's `EvalResult`s."""
    from huggingface_hub import EvalResult

    about = manifest.evaluation
    results = []
    for row in task_rows(manifest.gate):
        task = row.task
        where = about.datasets.get(task.task, HubDataset(id=task.task))
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name=f"{task.task}, {about.shots[task.task]}-shot, {task.documents} documents",
                dataset_type=where.id,
                dataset_name=task.task,
                dataset_config=where.config,
                dataset_split=about.splits.get(task.task),
                metric_type=about.metrics[task.task] if row.score == "accuracy" else "expected_score",
                metric_value=row.kept.candidate,
            )
        )
    return results


def hub_results(manifest: Manifest) -> str:
    """Return the text of the hub's `.eval_results/*.yaml`: the scores on data sets that it knows by name."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    datasets = manifest.evaluation.datasets
    entries = [
        EvalResultEntry(
            dataset_id=datasets[task.task].id,
            task_id=datasets[task.task].config or "default",
            value=task.candidate,
            date=manifest.created,
            notes=_notes(manifest, task),
        )
        for task in manifest.gate.tasks
        if task.task in datasets
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def _notes(manifest: Manifest, task: TaskVerdict) -> str:
    """Return how a task's accuracy was measured, and what is kept of it and of the expected score."""
    about, scores = manifest.evaluation, {"accuracy": task, "expected score": task.expected}
    kept = ", ".join(f"{name} kept {kept_with_bounds(found)}" for name, found in scores.items() if found)
    return (
        f"{about.metrics[task.task]}, {about.shots[task.task]}-shot, {task.documents} documents of "
        f"{about.splits[task.task]}, lm-eval {manifest.versions['lm_eval']}; baseline {task.baseline}; {kept}"
    )
