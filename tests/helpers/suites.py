"""Small suites, and checks of what a run published."""

import hashlib
from pathlib import Path

SUITE = """
version: 1
name: little
summary: of the tests
tasks:
  - {{task: sciq, limit: {sciq}}}
  - {{task: lambada_openai, limit: {lambada}}}
policy: {{decide: {decide}}}
"""


def little(folder: Path, sciq: int = 24, lambada: int = 24, decide: str = "point") -> str:
    path = folder / "little.yaml"
    path.write_text(SUITE.format(sciq=sciq, lambada=lambada, decide=decide))
    return f"gate.suite={path}"


def sums_hold(folder: Path) -> bool:
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    named = {line.split("  ")[1]: line.split("  ")[0] for line in lines}
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    return named.keys() == present and all(
        hashlib.sha256((folder / name).read_bytes()).hexdigest() == value for name, value in named.items()
    )
