"""A checkpoint's own generation config decides neither whether it can be quantized nor how it is measured."""

import json
from pathlib import Path

import pytest

from pipelines.core.errors import BadInput
from pipelines.planning.stage import make_plan
from pipelines.quantization.stage import quantize
from pipelines.runtimes.generation import FILE, check_generation
from pipelines.runtimes.lm_eval import Ends
from pipelines.runtimes.loading import load_for_inference
from pipelines.runtimes.transformers_lm import TransformersLM
from pipelines.verification.stage import verify
from tests.conftest import BEAMS, Cli, edit_json
from tests.helpers.questions import plain

PROMPT = "The quick brown fox"
UNREADABLE = {"{": "is not a valid JSON file", "[]": "", '{"early_stopping": "soon"}': "early_stopping", "": "JSON"}


def written(model: Path) -> str:
    lm = TransformersLM(model, "cpu")
    (text,) = lm.write([lm.tok_encode(PROMPT)], Ends(8, (), None))
    return text


@pytest.mark.parametrize(
    "settings",
    [
        BEAMS,
        {"do_sample": True, "top_k": 5, "temperature": 0.3, "return_dict_in_generate": True},
        {"max_new_tokens": 1, "stop_strings": ["a"], "penalty_alpha": 0.6, "top_k": 4},
        {"min_new_tokens": 300, "max_length": 3, "prompt_lookup_num_tokens": 3},
    ],
)
def test_settings_that_are_for_chat_programs_change_nothing(tiny_copy: Path, settings: dict[str, object]) -> None:
    (tiny_copy / FILE).write_text("{}")
    expected = written(tiny_copy)
    (tiny_copy / FILE).write_text(json.dumps(settings))
    assert written(tiny_copy) == expected
    artifact = quantize(make_plan("fp8", tiny_copy))
    assert verify(artifact).continuation
    assert json.loads((artifact.checkpoint / FILE).read_text()) == settings


def test_a_penalty_for_going_in_circles_stays_as_in_plain_lm_eval(tiny_copy: Path) -> None:
    from lm_eval.api.instance import Instance

    before = written(tiny_copy)
    edit_json(tiny_copy / "config.json", eos_token_id=2)
    (tiny_copy / FILE).write_text(json.dumps({"repetition_penalty": 5.0, "eos_token_id": 2}))
    settings = {"until": [], "max_gen_toks": 8, "do_sample": False}
    asked = [Instance("generate_until", {}, (PROMPT, settings), 0, ("free", 0, 1))]
    assert [written(tiny_copy)] == plain(tiny_copy).generate_until(asked) != [before]


@pytest.mark.parametrize(("content", "why"), UNREADABLE.items())
def test_one_that_transformers_does_not_read_is_named(tiny_copy: Path, content: str, why: str) -> None:
    plan = make_plan("fp8", tiny_copy)
    (tiny_copy / FILE).write_text(content)
    for work in (check_generation, lambda folder: load_for_inference(folder, "cpu"), lambda _: quantize(plan)):
        with pytest.raises(
            BadInput, match=f"{FILE}: transformers cannot read it: .*{why}.*\n    mend it, or remove it"
        ):
            work(tiny_copy)
    (tiny_copy / FILE).unlink()
    load_for_inference(tiny_copy, "cpu")


def test_one_that_cannot_be_read_stops_a_run_before_it_begins(cli: Cli, tiny_copy: Path) -> None:
    (tiny_copy / FILE).write_text("{")
    done = cli("run", "fp8", "--model", tiny_copy)
    assert (done.returncode, done.stdout) == (2, "")
    said = f"planning {tiny_copy} with fp8\nerror: {tiny_copy}/{FILE}: transformers cannot read it: It looks like"
    assert done.stderr.startswith(said)
