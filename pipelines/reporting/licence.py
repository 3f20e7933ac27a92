"""The licence that a base model declares, in the forms that registries read."""

from collections.abc import Mapping

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

ON_HUB: Mapping[str, str] = {"bsd": "BSD-3-Clause", "lgpl": "LGPL-3.0-or-later", "unlicense": "Unlicense"}
"""Names of the Hub that are not SPDX's, where the Hub says what they mean."""
SAYS_NOTHING = frozenset({"", "other", "unknown", "cc"})
"""Names of the Hub by which a licence is meant, and nobody can tell which."""


def spdx(declared: str | None) -> str | None:
    """Return the SPDX expression of a card's `license` field, which may name several; None if it names no licence.

    A name that SPDX does not know, like `llama3.1` or `gemma`, becomes `LicenseRef-llama3.1`, as SPDX asks.
    """
    names = [name.strip() for name in (declared or "").lower().split(",")]
    if not names or any(name in SAYS_NOTHING for name in names):
        return None
    return " AND ".join(_one(ON_HUB.get(name, name)) for name in names)


def _one(name: str) -> str:
    try:
        return canonicalize_license_expression(name)
    except InvalidLicenseExpression:
        safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in ".-") else "-" for letter in name)
        return f"LicenseRef-{safe.removeprefix('licenseref-')}"
