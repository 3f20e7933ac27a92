"""Where to begin: the order of recipes against what is known to hold, on headers of Llama-3.1-8B."""

import json
from pathlib import Path

import pytest

from pipelines.checkpoint.headers import Checkpoint
from pipelines.cli.tables.recommend import show_recommendation
from pipelines.core.errors import BadInput
from pipelines.flow.recommend import Recommendation, Wish, recommend, with_second_opinion
from pipelines.formats.schemes import SCHEMES
from pipelines.recipe.load import load_recipe
from pipelines.serving.hardware import GPUS, Hardware
from pipelines.serving.roofline import Measured, Traffic
from pipelines.serving.second_opinion import Opinion, Question
from pipelines.serving.serving import Goal
from tests.helpers.checkpoints import llama_3_8b

pytestmark = pytest.mark.usefixtures("fakes")
CPU = Hardware(name="cpu", bandwidth=50e9, operations={"16 bits": 1e12}, memory=64 << 30, source="of the tests")


@pytest.fixture
def llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """Headers of Llama-3.1-8B, and a cache without runs."""
    monkeypatch.setenv("QUANTGATE_CACHE", str(tmp_path / "cache"))
    return llama_3_8b(tmp_path)


def hardware(name: str) -> Hardware:
    return CPU if name == "cpu" else GPUS[name]


def names(made: Recommendation) -> list[str]:
    return [choice.recipe for choice in made.choices]


def first(made: Recommendation) -> str:
    """The family of formats, or the GGUF type, of the recipe to begin with."""
    kind = load_recipe(made.choices[0].recipe).loss_class
    return {str(name): scheme.family.name for name, scheme in SCHEMES.items()}.get(kind, kind)


@pytest.mark.parametrize(
    ("gpu", "goals", "families"),
    [
        ("H100", ("throughput", "cost"), {"FP8"}),
        ("H200", ("throughput", "cost"), {"FP8"}),
        ("L40S", ("throughput", "cost"), {"FP8"}),
        ("L4", ("throughput", "cost"), {"FP8"}),
        ("B200", ("throughput", "cost"), {"FP4"}),
        ("A100", ("throughput", "cost"), {"INT8"}),
        ("A100", ("latency",), {"INT4"}),
        ("L4", ("latency",), {"INT4"}),
        ("MI300", ("throughput",), {"FP8"}),
        ("cpu", ("edge", "latency"), {"Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS"}),
    ],
)
def test_the_order_begins_where_it_is_known_to(
    llama: Checkpoint, gpu: str, goals: tuple[Goal, ...], families: set[str]
) -> None:
    for goal in goals:
        assert first(recommend(llama, Wish(goal=goal, hardware=hardware(gpu)))) in families, goal


def test_long_contexts_begin_with_keys_and_values_in_fp8(llama: Checkpoint) -> None:
    for gpu in ("H100", "B200", "L40S"):
        made = recommend(llama, Wish(goal="long-context", hardware=GPUS[gpu], gpus=2))
        assert names(made)[0] == "fp8-kv" and made.context == 131072


def test_what_fits_is_weights_and_keys_and_values(llama: Checkpoint) -> None:
    half = GPUS["L4"].model_copy(update={"memory": 10 * 10**9})
    made = recommend(llama, Wish(goal="latency", hardware=half, context=4096))
    assert made.available == 9 * 10**9 and made.memory_16_bits > made.available
    assert all(choice.memory <= made.available for choice in made.choices)
    assert first(made) == "INT4", "8 bits do not fit"
    why = {one.recipe: one.why for one in made.left_out}
    assert why["int8-weight-only"].startswith("does not fit: it takes 9.6 GB, there are 9.0 GB; 2 L4 would hold it")
    cached = 4096 * 131072
    assert next(one for one in made.choices if one.recipe == "int4-gptq").memory > cached + 4 * 10**9
    longer = recommend(llama, Wish(goal="latency", hardware=half, context=131072))
    assert not longer.choices, "so many keys and values leave no room"


def test_cost_takes_as_few_gpus_as_hold_it_and_throughput_all(llama: Checkpoint) -> None:
    gpu = GPUS["L4"]  # 16 bits and their keys and values fit two
    cost = recommend(llama, Wish(goal="cost", hardware=gpu, gpus=4))
    assert cost.choices[0].gpus == 1 and load_recipe(names(cost)[0]).kv_cache == "FP8"
    assert {choice.gpus for choice in recommend(llama, Wish(goal="throughput", hardware=gpu, gpus=4)).choices} == {4}


def test_a_recipe_that_is_slower_than_16_bits_is_no_choice_where_those_fit(llama: Checkpoint) -> None:
    made = recommend(llama, Wish(goal="throughput", hardware=GPUS["H100"]))
    why = {one.recipe: one.why for one in made.left_out}
    assert "of the speed of 16 bits, by the roofline" in why["int4-awq"]
    assert "int4-awq" in names(recommend(llama, Wish(goal="latency", hardware=GPUS["H100"])))


def test_what_nothing_serves_there_is_left_out_with_the_reason(llama: Checkpoint) -> None:
    why = {one.recipe: one.why for one in recommend(llama, Wish(goal="latency", hardware=GPUS["B200"])).left_out}
    assert "Blackwell" in why["int8"]
    assert (
        "keys and values in FP8"
        in {one.recipe: one.why for one in recommend(llama, Wish(goal="latency", hardware=GPUS["A100"])).left_out}[
            "fp8-kv"
        ]
    )
    edge = recommend(llama, Wish(goal="edge", hardware=CPU))
    assert {choice.runtime for choice in edge.choices} == {"llama.cpp"}


def test_what_does_not_keep_enough_comes_after_what_may(llama: Checkpoint) -> None:
    wish = Wish(goal="latency", hardware=CPU)
    order = names(recommend(llama, wish))
    assert order.index("gguf-q8_0") < order.index("gguf-iq2_m"), "of which nothing is known"
    strict = names(recommend(llama, wish.model_copy(update={"keep": 0.999})))
    assert strict.index("gguf-q8_0") < strict.index("gguf-q4_k_m")


def finish(checkpoint: Checkpoint, cache: Path, recipe: str, verdict: str, retention: float) -> None:
    """Leave the record of a run in the cache, with what is read of it here."""
    manifest = {
        "recipe": load_recipe(recipe).model_dump(mode="json"),
        "model": {"label": checkpoint.label, "parameters": checkpoint.parameters},
        "gate": {"verdict": verdict, "retention": retention},
        "evaluation": {"suite": {"name": "smoke"}},
    }
    (cache / "runs" / f"{recipe}-{verdict}").mkdir(parents=True)
    text = json.dumps({"verdict": {"verdict": verdict}, "manifest": manifest})
    (cache / "runs" / f"{recipe}-{verdict}" / "run.json").write_text(text)


def test_what_failed_here_is_not_recommended_again_and_what_passed_says_so(llama: Checkpoint, tmp_path: Path) -> None:
    wish = Wish(goal="throughput", hardware=GPUS["H100"])
    assert names(recommend(llama, wish))[:2] == ["fp8-kv", "fp8"]
    finish(llama, tmp_path / "cache", "fp8-kv", "FAIL", 0.9712)
    finish(llama, tmp_path / "cache", "fp8", "PASS", 0.9943)
    made = recommend(llama, wish)
    assert names(made)[0] == "fp8" and made.choices[0].expected.basis == "1 run here"
    why = {one.recipe: one.why for one in made.left_out}
    assert why["fp8-kv"] == "failed here: FAIL on suite smoke, it kept 97.12%"
    less = recommend(llama, wish.model_copy(update={"keep": 0.97}))
    assert names(less)[0] == "fp8-kv", "it kept what is asked now"


def test_what_was_measured_here_goes_before_the_roofline(llama: Checkpoint) -> None:
    def speed(recipe: str | None, rate: float, size: int) -> Measured:
        return Measured(recipe=recipe, runtime="llama.cpp", concurrency=1, tokens_per_second=rate, bytes=size)

    seen = (speed(None, 3.0, 16 * 10**9), speed("gguf-q4_0", 3.3, 5 * 10**9), speed("gguf-q8_0", 6.0, 8 * 10**9))
    made = recommend(llama, Wish(goal="edge", hardware=CPU, measured=seen))
    assert names(made)[0] == "gguf-q8_0"
    by = {choice.recipe: (choice.basis, round(choice.speed, 3)) for choice in made.choices}
    assert by["gguf-q8_0"] == ("measured here", 2.0) and by["gguf-q4_0"] == ("measured here", 1.1)
    assert by["gguf-q5_k_m"][0] == "roofline"


def test_it_ends_in_the_commands_that_prove_it(llama: Checkpoint) -> None:
    made = recommend(llama, Wish(goal="throughput", hardware=GPUS["H100"], gpus=2), "meta-llama/Llama-3.1-8B")
    assert made.choices[0].commands == (
        "quantgate run fp8-kv --model meta-llama/Llama-3.1-8B",
        "quantgate bench artifacts/model/fp8-kv --baseline --runtime vllm",
        "quantgate serve-config artifacts/model/fp8-kv --runtime vllm --context 2048 --concurrency 64 --gpus 2",
    )


def test_a_model_that_is_quantized_already_is_refused_once(llama: Checkpoint) -> None:
    quantized = llama.model_copy(update={"config": {**llama.config, "quantization_config": {"quant_method": "gptq"}}})
    with pytest.raises(BadInput) as refused:
        recommend(quantized, Wish(goal="latency", hardware=CPU))
    assert len(refused.value.problems) == 1


def test_a_wish_that_makes_no_sense_is_refused_with_every_reason(llama: Checkpoint) -> None:
    with pytest.raises(BadInput) as refused:
        recommend(llama, Wish(goal="edge", hardware=CPU, gpus=2, context=200_000))
    assert [problem.where for problem in refused.value.problems] == ["--context 200000", "--gpus 2"]


def test_a_second_opinion_is_shown_beside_ours_and_changes_no_order(
    llama: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment is not there in these tests; tests/environments asks the real one."""

    def answer(_: Path, __: Hardware, ___: Traffic, questions: list[Question]) -> tuple[Opinion, ...]:
        rates = {None: 100.0, "FP8_DYNAMIC": 150.0}
        return tuple(
            Opinion(tokens_per_second=rates[one.scheme]) if one.scheme in rates else Opinion(why="no figures")
            for one in questions
        )

    monkeypatch.setattr("pipelines.flow.recommend.second_opinion.ask", answer)
    made = recommend(llama, Wish(goal="throughput", hardware=GPUS["H100"]))
    both = with_second_opinion(made, llama, GPUS["H100"])
    assert both.choices == made.choices and both.asked.keys() == {*names(made)}
    assert both.asked["fp8"].speed == 1.5 and both.asked["int8"].why == "no figures"
    assert both.asked["gguf-q8_0"].why.startswith("not asked")
    show_recommendation(both)


def test_people_see_the_order_the_reasons_and_the_commands(
    llama: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    show_recommendation(recommend(llama, Wish(goal="latency", hardware=GPUS["A100"])))
    shown = capsys.readouterr().out
    assert "model on A100 for latency" in shown and "│ int4-awq" in shown
    assert "not fp8-kv: no source tells that vLLM keeps keys and values in FP8 there" in shown
    assert "to prove int4-awq:\n  quantgate run int4-awq\n" in shown
