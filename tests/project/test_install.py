"""A wheel, installed away from the checkout, is a whole quantgate with its recipes, sets and suites inside."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT


def test_an_installed_wheel_carries_its_data(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(ROOT)]
    subprocess.run(install, check=True, capture_output=True)
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {"pipelines", "bin"}
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = [sys.executable, "-c", "import pipelines; print(pipelines.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == str(site / "pipelines" / "__init__.py")
    for kind, name in (("recipes", "fp8"), ("sets", "self"), ("suites", "smoke"), ("tasks", "sciq")):
        command = [sys.executable, "-m", "pipelines.cli", "list", kind]
        done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
        assert name in done.stdout
