"""aiconfigurator in its own environment, asked about headers of Llama-3.1-8B."""

from pathlib import Path

import pytest

from pipelines.environments import isolated
from pipelines.flow.recommend import Wish, recommend, with_second_opinion
from pipelines.serving.hardware import GPUS
from pipelines.serving.roofline import Traffic
from pipelines.serving.second_opinion import Question, ask
from tests.helpers.checkpoints import llama_3_8b

pytestmark = pytest.mark.engines


@pytest.fixture(autouse=True)
def aiconfigurator(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment in the user's own cache, made there unless it is."""
    with monkeypatch.context() as patch:
        patch.setenv("QUANTGATE_CACHE", str((cache / "wheels").resolve().parent))
        python = isolated.make("aiconfigurator")
    monkeypatch.setattr("pipelines.serving.second_opinion.isolated.make", lambda _: python)


def test_it_answers_what_it_has_figures_of_and_says_what_it_lacks(tmp_path: Path) -> None:
    model = llama_3_8b(tmp_path).folder
    plain = Question(runtime="vllm", scheme=None, fp8_cache=False, gpus=1)
    schemes = ("FP8_DYNAMIC", "W4A16", "MXFP4")
    questions = [plain, *(plain.model_copy(update={"scheme": scheme}) for scheme in schemes)]
    traffic = Traffic(concurrency=64, read=1792, written=256)
    sixteen, fp8, int4, mxfp4 = ask(model, GPUS["H100"], traffic, questions)
    assert sixteen.tokens_per_second and fp8.tokens_per_second
    assert 1.1 < fp8.tokens_per_second / sixteen.tokens_per_second < 2
    assert int4.tokens_per_second is None and int4.why == "it has no figures of int4_wo there"
    assert mxfp4.tokens_per_second is None and mxfp4.why.startswith("not asked")


@pytest.mark.usefixtures("fakes")
def test_its_order_of_fp8_and_fp4_on_blackwell_is_ours(tmp_path: Path) -> None:
    model = llama_3_8b(tmp_path)
    made = recommend(model, Wish(goal="throughput", hardware=GPUS["B200"]))
    asked = with_second_opinion(made, model, GPUS["B200"]).asked
    speeds = {name: one.speed for name, one in asked.items() if one.speed}
    ours = {choice.recipe: choice.speed for choice in made.choices}
    for name in ("nvfp4", "fp8-kv", "fp8"):
        assert speeds[name] == pytest.approx(ours[name], rel=0.15)
    assert speeds["nvfp4"] > speeds["fp8-kv"] > speeds["fp8"] > 1
    assert not asked["gguf-q8_0"].speed and asked["gguf-q8_0"].why
