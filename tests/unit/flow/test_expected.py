"""The retention to expect: what summaries say, as numbers, and what finished runs say before them."""

import json
import re
from pathlib import Path

import pytest

from pipelines.flow.expected import SUMMARIES, expected
from pipelines.recipe import library
from pipelines.recipe.load import load_recipe
from tests.helpers.checkpoints import SMALL, fake


def said(name: str) -> str:
    return load_recipe(name).summary.rpartition("expect")[2]


def test_every_recipe_s_summary_is_in_the_table() -> None:
    assert sorted(SUMMARIES) == library.names("recipe")


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_table_has_the_figures_of_the_summary(name: str) -> None:
    figures = {float(figure) / 100 for figure in re.findall(r"\d+(?:\.\d+)?(?=[-%])", said(name).replace("%-", "-"))}
    figures |= {float(figure) / 100 for figure in re.findall(r"(?<=-)(\d+(?:\.\d+)?)(?=%)", said(name))}
    ranges = [one for one in SUMMARIES[name] if one]
    assert {bound for one in ranges for bound in one} - {0.0, 1.0} <= figures
    assert figures - {1.0} <= {bound for one in ranges for bound in one}


def record(folder: Path, name: str, *, verdict: str, retention: float, model: str = "model", parameters: int) -> None:
    """A run's record with what is read of it here."""
    recipe = load_recipe("fp8").model_copy(update={"name": name}).model_dump(mode="json")
    manifest = {
        "recipe": recipe,
        "model": {"label": model, "parameters": parameters},
        "gate": {"verdict": verdict, "retention": retention},
        "evaluation": {"suite": {"name": "smoke"}},
    }
    (folder / "runs" / name).mkdir(parents=True)
    (folder / "runs" / name / "run.json").write_text(json.dumps({"verdict": {}, "manifest": manifest} | {"verdict": 1}))


def test_runs_on_the_model_go_before_those_on_models_of_its_size_and_these_before_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTGATE_CACHE", str(tmp_path / "cache"))
    model, recipe = fake(tmp_path, SMALL), load_recipe("fp8")
    first = expected(recipe, model)
    assert (first.low, first.high, first.tried) == (0.985, 1.0, ())
    assert first.basis == "its summary, for models below 1B parameters"
    record(tmp_path / "cache", "large", verdict="PASS", retention=0.999, model="large", parameters=8 * 10**9)
    assert expected(recipe, model) == first, "a model of another size says nothing"
    record(tmp_path / "cache", "alike", verdict="PASS", retention=0.993, model="other", parameters=10**8)
    alike = expected(recipe, model)
    assert (alike.low, alike.high, alike.tried) == (0.993, 0.993, ())
    assert alike.basis == "1 run on other models below 1B parameters: other"
    record(tmp_path / "cache", "own", verdict="FAIL", retention=0.97, parameters=model.parameters)
    own = expected(recipe, model)
    assert (own.low, own.high, own.basis) == (0.97, 0.97, "1 run here")
    assert [one.verdict for one in own.tried] == ["FAIL"]
    assert own.may_keep(0.97) and not own.may_keep(0.98)
    assert expected(load_recipe("fp8", ["quantize.ignore=[lm_head]"]), model) == first, "another artifact"
