"""lm-eval's requests, and what plain lm-eval answers."""

from pathlib import Path
from typing import Any

from pipelines.evaluation.tasks import open_task
from pipelines.recipe.load import load_task
from pipelines.recipe.suite import SuiteTask

FEW = 10
"""Documents of each task."""


def requests(name: str, folder: Path) -> Any:
    """lm-eval's questions of the first documents of a task."""
    asked = open_task(load_task(name), folder).requests(SuiteTask(task=name), range(FEW))
    return [request for _, request in asked]


def plain(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    return HFLM(pretrained=model, tokenizer=str(folder), device="cpu", batch_size=4)
