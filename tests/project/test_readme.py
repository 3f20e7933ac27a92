"""The README's notebook lines run as they stand, but for the paths, a small suite and an easier target."""

import re
from pathlib import Path

import pytest

from tests.conftest import EASY
from tests.helpers.paths import ROOT


def test_the_notebook_lines_run(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(EASY)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    lines = [line for line in blocks[0].splitlines() if line]
    assert len(lines) <= 10
    code = blocks[0]
    for written, here in (
        ('"path/to/checkpoint"', repr(str(tiny))),
        ('"smoke"', repr(str(suite))),
        ('load_recipe("fp8")', 'load_recipe("fp8", ["gate.retention=0.6"])'),
        ('"artifacts/mine"', repr(str(tmp_path / "out"))),
    ):
        assert written in code
        code = code.replace(written, here)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("PASS ")
    assert (tmp_path / "out" / "quantgate.json").is_file()
