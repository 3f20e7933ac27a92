"""The links of every page lead somewhere, and the README is short."""

import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
PAGES = [
    path.relative_to(ROOT)
    for folder in (".", "docs", "docs/figures", "benchmarks")
    for path in ROOT.glob(f"{folder}/*.md")
]


def prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda code: "x" * len(code[0]), text)


@cache
def anchors(page: Path) -> frozenset[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return frozenset(names)


def test_all_pages_are_looked_at() -> None:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert {Path(name) for name in listed.stdout.splitlines()} <= {*PAGES}


@pytest.mark.parametrize("name", PAGES, ids=str)
def test_every_link_leads_somewhere(name: Path) -> None:
    page = ROOT / name
    broken = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_contents() -> None:
    contents = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / link.partition("#")[0]).resolve() for link in LINK.findall(contents)}
    assert {path.resolve() for path in (ROOT / "docs").rglob("*.md")} - {ROOT / "docs" / "README.md"} <= linked


def test_the_readme_is_short_and_says_how_to_start_and_to_test() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 900
    blocks = re.findall(r"^```\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert {"make quantize RECIPE=fp8\n", "make test\n"} <= {*blocks}


def test_every_recipe_that_the_readme_names_exists() -> None:
    table = (
        (ROOT / "README.md").read_text(encoding="utf-8").partition("## Recipes by hardware")[2].partition("\n## ")[0]
    )
    names = set(re.findall(r"`([a-z][a-z0-9_-]*)`", table)) - {"export"}
    assert names and all((ROOT / "recipes" / f"{name}.yaml").is_file() for name in names)


def test_the_picture_of_the_flow_can_be_read_aloud_and_in_the_dark() -> None:
    text = (ROOT / "docs" / "figures" / "flow.svg").read_text(encoding="utf-8")
    assert 'role="img" aria-labelledby="title desc"' in text
    assert re.search(r'<title id="title">.+</title>', text) and re.search(r'<desc id="desc">.+</desc>', text)
    assert "prefers-color-scheme: dark" in text
