"""Sharing what questions begin with changes no score: against plain lm-eval, and row by row."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.checkpoint.headers import Checkpoint
from pipelines.core.errors import QuantgateError
from pipelines.evaluation import looks
from pipelines.evaluation.patches import patched
from pipelines.evaluation.stage import evaluate
from pipelines.recipe.suite import Suite, SuiteTask
from pipelines.runtimes import transformers_lm
from pipelines.runtimes.prefixes import Ask, Row, lay_out, shared
from pipelines.runtimes.transformers_lm import TransformersLM, rows_that_fit
from tests.conftest import edit_json, make_tiny
from tests.helpers.questions import plain, requests

TASKS = ("sciq", "arc_easy", "piqa", "hellaswag", "winogrande", "lambada_openai", "boolq")


@pytest.fixture(scope="session")
def wide(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` in float32, where only the order of sums is left to differ."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_tiny(tmp_path_factory.mktemp("checkpoints") / "wide", smollm2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(1)
    for parameter in model.parameters():  # sharper than a fresh model, so that the scores tell answers apart
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("examples", [False, True])
def test_every_score_is_that_of_plain_lm_eval(wide: Path, tmp_path: Path, examples: bool) -> None:
    """All tasks in float32, as lm-eval asks them, and after examples, which are read once."""
    ours, theirs = TransformersLM(wide, "cpu"), plain(wide)
    assert ours._shares
    for name in ("arc_easy", "winogrande") if examples else TASKS:
        asked = requests(name, tmp_path)
        asked = _with_common(asked, ours) if examples else asked
        with patched():
            expected, found = theirs.loglikelihood(asked), ours.loglikelihood(asked)
        assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=2e-4)
        assert [likeliest for _, likeliest in found] == [likeliest for _, likeliest in expected]


def _with_common(asked: Any, model: TransformersLM) -> Any:
    """The same questions after the same examples."""
    examples = "Question: What is wet?\nAnswer: water\n\nQuestion: What is hot?\nAnswer: the sun\n\n"
    assert len(model.tok_encode(examples)) > transformers_lm.FEWEST
    for request in asked:
        request.arguments = (examples + request.args[0], *request.args[1:])
    return asked


def test_a_model_that_sees_only_a_window_shares_nothing_and_scores_alike(wide: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(wide, tmp_path / "window"))
    edit_json(folder / "config.json", model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=8)
    ours, theirs = TransformersLM(folder, "cpu"), plain(folder)
    assert not ours._shares
    asked = requests("sciq", tmp_path)
    with patched():
        expected, found = theirs.loglikelihood(asked), ours.loglikelihood(asked)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=2e-4)


def test_a_model_that_ignores_the_mask_is_found_out(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a configuration does not tell, a try does: here every token sees every earlier one of its row."""
    import torch

    def causal(rows: Any, longest: int, common: int, dtype: torch.dtype, _: torch.device) -> torch.Tensor:
        hidden = torch.ones(longest, common + longest, dtype=torch.bool).triu(common + 1)
        return (
            torch.zeros(hidden.shape, dtype=dtype)
            .masked_fill_(hidden, torch.finfo(dtype).min)
            .expand(len(rows), 1, -1, -1)
        )

    monkeypatch.setattr(transformers_lm, "attention_mask", causal)
    assert not TransformersLM(wide, "cpu")._shares


def test_memory_that_runs_out_halves_the_batch(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is raised here by the test: a GPU's memory runs out where there is none."""
    import torch

    asked = requests("sciq", tmp_path)
    model = TransformersLM(wide, "cpu")
    expected = model.loglikelihood(asked)
    real, most = transformers_lm.forward, 1

    def forward(model: Any, rows: Any, past: Any = None) -> Any:
        if len(rows) > most:
            raise torch.OutOfMemoryError
        return real(model, rows, past)

    monkeypatch.setattr(transformers_lm, "forward", forward)
    assert [s for s, _ in model.loglikelihood(asked)] == pytest.approx([s for s, _ in expected], abs=2e-4)
    assert model._budget < transformers_lm.BATCH_TOKENS["cpu"]
    most = 0
    with pytest.raises(QuantgateError, match="does not hold the longest question"):
        model.loglikelihood(asked)


def test_what_follows_a_prompt_is_what_plain_lm_eval_writes(smollm2: Checkpoint) -> None:
    from lm_eval.api.instance import Instance

    settings = {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False}
    asked = [
        Instance("generate_until", {}, (prompt, settings), number, ("free", number, 1))
        for number, prompt in enumerate(["The capital of France is", "Water is made of hydrogen and", "1 + 1 ="])
    ]
    with patched():
        found = TransformersLM(smollm2.folder, "cpu").generate_until(asked)
        expected = plain(smollm2.folder).generate_until(asked)
    assert found == expected


def test_rows_hold_every_token_once_where_sequences_agree() -> None:
    sequences = [(1, 2, 3, 4, 5), (1, 2, 3, 4, 6, 7), (1, 2, 3, 9, 9), (8, 8, 8)]
    scored = [3, 3, 3, 1]
    (row,) = lay_out(sequences, scored, longest=100)
    assert row.tokens == [1, 2, 3, 4, 6, 9, 8, 8]
    assert row.parents == [-1, 0, 1, 2, 3, 2, -1, 6]
    assert row.depths == [0, 1, 2, 3, 4, 3, 0, 1]
    read = [(ask.sequence, ask.position, row.tokens[ask.node]) for ask in row.asks]
    assert read == [(0, 3, 3), (0, 4, 4), (1, 3, 3), (1, 4, 4), (1, 5, 6), (2, 3, 3), (2, 4, 9), (3, 1, 8), (3, 2, 8)]
    apart = lay_out(sequences, scored)
    assert [row.tokens for row in apart] == [list(sequence[:-1]) for sequence in sequences]
    assert [row.branches for row in (row, *apart)] == [True, False, False, False, False]
    assert [len(row.tokens) for row in lay_out(sequences, scored, longest=5)] == [6, 2]
    after = lay_out(sequences[:3], scored[:3], common=2, longest=100)
    assert after[0].tokens == [3, 4, 6, 9]
    assert shared((1, 2, 3), (1, 2)) == 2


@pytest.mark.parametrize(
    ("tokens", "asks", "busy", "together"),
    [
        (1000, 100, 0, 2),  # the third would be padded by more than it holds
        (1000, 100, 300, 3),  # which costs nothing before a GPU is busy
        (1000, 100, 301, 4),
        (250, 100, 301, 2),
        (1000, 15, 301, 1),
        (50, 5, 301, 1),  # one goes always
    ],
)
def test_a_batch_is_full_by_tokens_by_answers_or_by_padding(tokens: int, asks: int, busy: int, together: int) -> None:
    rows = [Row([0] * length, [], [], [Ask(0, 0, 0)] * 10) for length in (100, 90, 40, 30)]
    assert rows_that_fit(rows, tokens, asks, busy) == together


def test_an_evaluation_that_was_killed_goes_on_at_its_last_block(
    smollm2: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is stopped by an exception in the middle of a task."""
    model = make_tiny(tmp_path / "model", smollm2, num_hidden_layers=1)  # which no other test evaluates
    monkeypatch.setattr(looks, "BLOCK", 2)
    few = Suite(version=1, name="few", summary="", tasks=(SuiteTask(task="copa", limit=12),))
    real, calls = TransformersLM.score_answers, []

    def stop(self: TransformersLM, questions: Any) -> Any:
        calls.append(len(questions))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, questions)

    with monkeypatch.context() as patch:
        patch.setattr(TransformersLM, "score_answers", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, few, "cpu")
    done = evaluate(model, few, "cpu")
    assert [block.reused for block in done.results] == [True, True, *[False] * (len(done.results) - 2)]
    assert len({document.id for document in done.scores()["copa"]}) == 12
    assert json.loads(json.dumps(done.tasks[0].documents)) == 12
