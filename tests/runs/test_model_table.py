"""docs/models.md says of every causal language model of transformers what becomes of it."""

from pathlib import Path

import pytest

from docs import models


def test_the_table_has_a_row_for_every_model_type() -> None:
    table = models.read_table()
    assert sorted(table) == models.kinds()
    results = [result for row in table.values() for result in row]
    assert {models.short(result) for result in results} <= {"yes", "refused", "failed", "not built"}
    assert all(result == "yes" or len(result) > 15 for result in results), "a reason is given"


def test_one_row_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (models.HERE / "models.md").read_text("utf-8")
    assert models.render(models.read_outcomes()) == before, "what is read is what is written"
    (tmp_path / "models.md").write_text(before, "utf-8")
    monkeypatch.setattr(models, "HERE", tmp_path)
    monkeypatch.setattr(models, "outcome", lambda kind, _: models.Outcome(kind, "X", ("refused: a reason",) * 3))
    models.main(["llama"])
    after = (tmp_path / "models.md").read_text("utf-8").splitlines()
    changed = [line for line in after if line not in before.splitlines()]
    assert changed[-1] == "| llama | X | refused: a reason | refused: a reason | refused: a reason |"
    assert [line.split(":")[0] for line in changed[:-1]] == [f"- {recipe}" for recipe in models.RECIPES], "the counts"
    with pytest.raises(SystemExit, match="of type gpt22"):
        models.main(["gpt22"])


@pytest.mark.parametrize("kind", ["llama", "mamba", "gpt2"])
def test_the_table_is_what_happens(kind: str, tmp_path: Path) -> None:
    assert models.outcome(kind, tmp_path).results == models.read_table()[kind]


@pytest.mark.slow
def test_the_whole_table_is_what_happens(tmp_path: Path) -> None:
    found = {kind: models.outcome(kind, tmp_path).results for kind in models.kinds()}
    assert found == models.read_table()
