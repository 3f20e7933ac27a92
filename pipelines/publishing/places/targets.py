"""The table of all kinds of places, and the way from what a user writes after `--to` to a target."""

import re
from pathlib import Path

from pipelines.core.errors import bad_input
from pipelines.publishing.places import folder, hub, object_store, registry
from pipelines.publishing.places.place import Target

KINDS = (folder.KIND, hub.KIND, registry.KIND, object_store.KIND)
"""Kinds of places, in the order in which they are asked whether a target is one of theirs."""
FORMS = f"{', '.join(kind.form for kind in KINDS[:-1])}, or {KINDS[-1].form}"
"""Forms of all targets, for help and messages."""
PLACEHOLDER = re.compile(r"\{(\w*)\}")


def parse_target(text: str | Path, **names: str) -> Target:
    """Return the target that `text` is, with `{model}`, `{recipe}` and the like replaced by `names`.

    Raises:
        BadInput: an unknown form or placeholder, or a credential in it, which is not repeated.
    """
    text = _filled(str(text), names)
    for kind in KINDS:
        if target := kind.parse(text):
            return target
    raise bad_input(text, f"'{text.partition('://')[0]}' is no kind of target", f"give {FORMS}")


def _filled(text: str, names: dict[str, str]) -> str:
    """Return `text` with each placeholder replaced by the name that it stands for."""
    unknown = sorted({found[1] for found in PLACEHOLDER.finditer(text)} - names.keys())
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in names) or "none"
        raise bad_input(text, f"has the unknown placeholder {{{unknown[0]}}}", f"known here: {known}")
    return PLACEHOLDER.sub(lambda found: names[found[1]], text)
