"""What lies beside the weights: files that travel with them, and the licence that their card declares."""

import re
from pathlib import Path

import yaml

from pipelines.core.strict_yaml import check_plain

COMPANIONS = (
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "LICENSE*",
    "NOTICE*",
    "additional_chat_templates/*.jinja",
)
"""Patterns of files that travel with the weights unchanged: tokenizer, chat template, generation config, licence."""
LEGAL = re.compile(r"(LICENSE|NOTICE)[^.]*(\.\d+)*(\.(txt|md|rst|html|pdf))?", re.IGNORECASE)
"""Names of licences that are texts: `LICENSE.py` could be imported, and vLLM would load `LICENSE.safetensors`."""
RESERVED = ("quantgate.json", "provenance.json")
"""Names of what is published beside an artifact: a source's own file of such a name does not travel."""
MAX_CARD = 128 << 10
"""Bytes at the beginning of a card that are read for its front matter."""


def other_files(folder: Path, weights: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the files that travel with the `weights` (names of files, an index among them), and those that stay
    behind: other formats, code."""
    known = weights | {"config.json", "README.md"}
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wanted = {path.relative_to(folder).as_posix() for pattern in COMPANIONS for path in folder.glob(pattern)}
    visible = {name for name in present if not name.startswith(".") and not name.endswith(".index.json")}
    wanted -= {name for name in wanted if name.startswith(("LICENSE", "NOTICE")) and not LEGAL.fullmatch(name)}
    wanted -= {*RESERVED}
    return tuple(sorted(wanted & visible - known)), tuple(sorted(visible - wanted - known))


def declared_licence(folder: Path) -> str | None:
    """Return the licence that the checkpoint's own card declares; None where it declares none that can be printed."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as file:
        front = re.match(r"---\s*\n(.*?\n)---\s*(\n|$)", file.read(MAX_CARD), re.DOTALL)
    try:
        check_plain(front[1] if front else "")
        data = yaml.safe_load(front[1]) if front else None
    except (yaml.YAMLError, ValueError):
        return None
    declared = data.get("license") if isinstance(data, dict) else None
    named = [name for name in (declared if isinstance(declared, list) else [declared]) if isinstance(name, str)]
    said = ", ".join(named).strip()
    return said if said and said.isprintable() else None
