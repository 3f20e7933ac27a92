"""The exit codes of the command, all in one place."""

from collections.abc import Iterable

PASS, ERROR, BAD_INPUT, FAIL, INCONCLUSIVE = range(5)
EXITS = {
    PASS: "passed and published, or done",
    BAD_INPUT: "bad input: nothing was published",
    FAIL: "the gate said FAIL",
    INCONCLUSIVE: "the gate said INCONCLUSIVE and the policy does not accept it, or this device cannot tell",
    ERROR: "anything unexpected, a target out of reach, or an artifact that is not what was promised",
}
"""Exit code → its meaning, for `quantgate --help` and docs/cli.md."""
EXIT_CODES = {"PASS": PASS, "FAIL": FAIL, "INCONCLUSIVE": INCONCLUSIVE}
"""Verdict → exit code."""
SEVERAL = "Several recipes exit with the worst of theirs: 1 over 3 over 4 over 0."


def worst(codes: Iterable[int]) -> int:
    """Return the exit code of several runs: 1 over 3 over 4 over 0."""
    found = {*codes}
    return next((code for code in (ERROR, FAIL, INCONCLUSIVE) if code in found), PASS)
