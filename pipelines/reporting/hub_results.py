"""The results of a run in the Hugging Face hub's own forms."""

from typing import Any

import yaml

from pipelines.recipe.suite import HubDataset
from pipelines.reporting.record import Manifest


def eval_results(manifest: Manifest) -> list[Any]:
    """Return the artifact's mean score on each task, as huggingface_hub's `EvalResult`s."""
    from huggingface_hub import EvalResult

    about = manifest.evaluation
    results = []
    for task in manifest.gate.tasks:
        where = about.datasets.get(task.task, HubDataset(id=task.task))
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name=f"{task.task}, {about.shots[task.task]}-shot, {task.documents} documents",
                dataset_type=where.id,
                dataset_name=task.task,
                dataset_config=where.config,
                dataset_split=about.splits.get(task.task),
                metric_type=about.metrics[task.task],
                metric_value=task.candidate,
            )
        )
    return results


def hub_results(manifest: Manifest) -> str:
    """Return the text of the hub's `.eval_results/*.yaml`: the scores on data sets that it knows by name."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    about = manifest.evaluation
    entries = [
        EvalResultEntry(
            dataset_id=about.datasets[task.task].id,
            task_id=about.datasets[task.task].config or "default",
            value=task.candidate,
            date=manifest.created,
            notes=f"{about.metrics[task.task]}, {about.shots[task.task]}-shot, {task.documents} documents of "
            f"{about.splits[task.task]}, lm-eval {manifest.versions['lm_eval']}; baseline {task.baseline}",
        )
        for task in manifest.gate.tasks
        if task.task in about.datasets
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
