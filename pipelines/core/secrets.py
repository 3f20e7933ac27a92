"""Keeping secrets out of what is shown and stored.

quantgate asks for none: tokens and keys stay with the client libraries that use them. But an error that such a library
raises may hold one, and errors are shown, and recorded by a release.
"""

import os
import re

SECRET = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|ACCESS_KEY|PRIVATE_KEY|SIGNING_KEY)(_\w+)?$|AUTH$"
)
"""Pattern of the names of environment variables that hold a secret."""
IN_TEXT = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}|\b(hf_\w{16,})|(?<=://)[^/@\s]+:[^/@\s]+(?=@)")
"""Pattern of secrets that are known by their looks: a header's, the hub's, a password in an address."""
SHORTEST = 6
"""Fewest characters of a value that is hidden: a shorter one is in half of all texts by chance."""
HIDDEN = "(hidden)"


def redact(text: str) -> str:
    """Return `text` without the values of secret environment variables, and without what looks like a secret."""
    values = [value for name, value in os.environ.items() if SECRET.search(name.upper()) and len(value) >= SHORTEST]
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return IN_TEXT.sub(HIDDEN, text)
