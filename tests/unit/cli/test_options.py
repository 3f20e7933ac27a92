"""Ranges that options share."""

import click
import pytest

from pipelines.cli.options import FiniteRange


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_range_takes_finite_numbers_only(value: str) -> None:
    with pytest.raises(click.BadParameter):
        FiniteRange(min=0, min_open=True).convert(value, None, None)
    assert FiniteRange(min=0, min_open=True).convert("0.5", None, None) == 0.5
