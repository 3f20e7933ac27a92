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


@pytest.mark.parametrize("kind", ["llama", "mamba", "gpt2"])
def test_the_table_is_what_happens(kind: str, tmp_path: Path) -> None:
    assert models.outcome(kind, tmp_path).results == models.read_table()[kind]


@pytest.mark.slow
def test_the_whole_table_is_what_happens(tmp_path: Path) -> None:
    found = {kind: models.outcome(kind, tmp_path).results for kind in models.kinds()}
    assert found == models.read_table()
