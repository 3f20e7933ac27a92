"""Our evaluation is lm-eval's own: the same scores as its plain command-line model gives, document by document."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.checkpoint.headers import Checkpoint
from pipelines.core.code import imported_by
from pipelines.core.errors import BadInput
from pipelines.evaluation.checks import prompts
from pipelines.evaluation.choice import LLAMA_WORKER, MODULES
from pipelines.evaluation.stage import evaluate, looks
from pipelines.gating.gate import gate
from pipelines.gating.spending import look_confidence
from pipelines.recipe import library
from pipelines.recipe.load import load_suite, load_task
from pipelines.recipe.suite import Suite, SuiteTask, Task


def suite(*tasks: SuiteTask) -> Suite:
    return Suite(version=1, name="little", summary="of the test", tasks=tasks)


def test_scores_of_every_task_equal_plain_lm_eval_on_the_same_rows(smollm2: Checkpoint, tmp_path: Path) -> None:
    """`hf` with its defaults, on files with the first rows of the same data, through lm-eval's own tasks."""
    names = library.names("task")
    few = {name: 1 if name == "gsm8k_cot" else 4 for name in names}  # writing an answer takes long
    theirs = plain(smollm2, [definition(load_task(name), few[name], tmp_path) for name in names])
    ours = evaluate(smollm2, suite(*(SuiteTask(task=name, limit=few[name]) for name in names)), "cpu").scores()
    for name in names:
        task, documents = load_task(name), ours[name]
        samples = [sample for sample in theirs[name] if sample["filter"] == (task.filter or theirs[name][0]["filter"])]
        assert [document.score for document in documents] == [sample[task.metric] for sample in samples], name
        assert [document.doc_hash for document in documents] == [sample["doc_hash"] for sample in samples], name
        assert [document.prompt_hash for document in documents] == [sample["prompt_hash"] for sample in samples], name
        assert [document.target_hash for document in documents] == [sample["target_hash"] for sample in samples], name
        choices = [len(sample["arguments"]) for sample in samples]
        assert [document.chance for document in documents] == [1 / n if n > 1 else 0 for n in choices], name


def definition(task: Task, few: int, folder: Path) -> Path:
    """The file of a task that is lm-eval's own but for the documents: the first rows of ours."""
    import lm_eval
    from datasets import load_dataset

    from pipelines.evaluation.rows import rows
    from pipelines.evaluation.tasks import task_index

    assert task.offline
    data, documents = folder / f"{task.task}.parquet", rows(task.offline)
    kind = "arrow" if documents.suffix == ".arrow" else "json"
    load_dataset(kind, data_files=str(documents), split="train").select(range(few)).to_parquet(data)
    splits = dict.fromkeys(("training_split", "validation_split", "test_split", "fewshot_split"), "null")
    splits["test_split" if task.offline.split == "test" else "validation_split"] = "rows"
    file = folder / f"{task.task}.yaml"
    file.write_text(
        f"include: {Path(lm_eval.__file__).parent / 'tasks' / task_index().files[task.task]}\ntask: {task.task}\n"
        f"dataset_path: parquet\ndataset_name: null\ndataset_kwargs: {{data_files: {{rows: {data}}}}}\n"
        + "".join(f"{key}: {split}\n" for key, split in splits.items())
    )
    return file


def plain(model: Checkpoint, definitions: list[Path]) -> dict[str, list[dict[str, Any]]]:
    """What plain `lm_eval` says of each document, task by task."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    done = lm_eval.simple_evaluate(
        "hf",
        model_args={"pretrained": str(model.folder), "dtype": "float32"},
        tasks=[str(file) for file in definitions],
        task_manager=TaskManager(include_defaults=False),
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
    )
    samples: dict[str, list[dict[str, Any]]] = done["samples"]
    return samples


def test_what_was_evaluated_is_not_evaluated_again_and_suites_share_tasks(smollm2: Checkpoint) -> None:
    copa, lambada = SuiteTask(task="copa", limit=6), SuiteTask(task="lambada_openai", limit=6)
    first = evaluate(smollm2, suite(copa), "cpu")
    both = evaluate(smollm2, suite(copa, lambada), "cpu")
    assert not any(block.reused for block in first.results)
    assert [{block.reused for block in task.blocks} for task in both.tasks] == [{True}, {False}]
    assert both.tasks[0].mean == first.tasks[0].mean
    assert all(document.chance == 0 for document in both.scores()["lambada_openai"])


def test_documents_that_share_a_passage_share_a_cluster(tiny: Path) -> None:
    documents = evaluate(tiny, suite(SuiteTask(task="boolq", limit=40)), "cpu").scores()["boolq"]
    assert len({document.doc_hash for document in documents}) == 40
    assert 2 < len({document.cluster for document in documents}) <= 40
    assert all(document.chance == 0.5 for document in documents)


def test_an_unknown_metric_says_what_there_is(smollm2: Checkpoint) -> None:
    with pytest.raises(BadInput, match=r"no per-document metric 'f1'\n    it scores: acc, acc_norm"):
        evaluate(smollm2, suite(SuiteTask(task="sciq", limit=2, metric="f1")), "cpu")


@pytest.mark.parametrize("name", library.names("suite"))
def test_every_task_of_every_suite_has_its_documents_offline(name: str) -> None:
    few = load_suite(name)
    tasks = tuple(task.model_copy(update={"limit": 3}) for task in few.tasks)
    texts = prompts(few.model_copy(update={"tasks": tasks}))
    assert len(texts) == 3 * len(tasks)
    assert all(len(text) > 20 for text in texts)


def test_a_ruined_model_is_refused_after_a_part_of_the_documents(smollm2: Checkpoint, tiny: Path) -> None:
    """Random weights against the real model: what is left is not even asked."""
    few = suite(SuiteTask(task="arc_easy", limit=256))
    sides = zip(looks(smollm2, few, "cpu"), looks(tiny, few, "cpu"), strict=True)
    for look, (baseline, candidate) in enumerate(sides):
        verdict = gate(baseline, candidate, 0.99, confidence=look_confidence(look, few.policy.confidence))
        if verdict.shown:
            break
    assert (verdict.verdict, verdict.certified) == ("FAIL", False)
    assert candidate.documents + verdict.spared == candidate.of == 256
    assert candidate.documents <= 128
    assert sum(task.documents for task in verdict.tasks) == candidate.documents
    assert next(m for m in verdict.measures if m.name == "margin").upper < 0


@pytest.mark.slow
def test_written_answers_are_drawn_with_several_seeds_and_averaged(smollm2: Checkpoint) -> None:
    drawn = SuiteTask(task="gsm8k_cot", limit=2, temperature=0.8, seeds=2)
    (task,) = evaluate(smollm2, suite(drawn), "cpu").tasks
    assert task.about.metric == "exact_match"
    assert task.about.shots == 8
    assert all(document.score in (0, 0.5, 1) and document.margin is None for document in task.scores())
    with pytest.raises(ValueError, match="give a temperature"):
        SuiteTask(task="gsm8k_cot", seeds=2)


def test_what_is_kept_depends_on_the_code_of_its_runtime_and_of_no_other() -> None:
    loads = {
        "transformers": {"runtimes.transformers_lm", "runtimes.prefixes", "runtimes.dequantize", "formats.rounding"},
        "vllm": {"runtimes.vllm", "environments.workers.vllm_runtime"},
        "llama.cpp": {"runtimes.llama_cpp", "quantization.gguf.convert"},
    }
    asks = {"runtimes.lm_eval", "evaluation.task", "evaluation.tasks", "evaluation.rows", "evaluation.patches"}
    for runtime, modules in MODULES.items():
        code = imported_by(["pipelines.evaluation.blocks", *modules])
        assert code >= {f"pipelines.{name}" for name in asks | loads[runtime]}
        assert not code & {"pipelines.quantization.stage", "pipelines.planning.stage", "pipelines.evaluation.looks"}
    assert "pipelines.runtimes.vllm" not in imported_by(MODULES["transformers"])
    assert LLAMA_WORKER.is_file()
