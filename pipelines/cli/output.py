"""The output of commands: JSON on standard output, and one message for each error on standard error."""

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click


def print_json(value: Any) -> None:
    """Print `value` as JSON on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def complain(text: str) -> None:
    """Print an error on standard error, its secrets hidden; keep quiet where nobody reads it."""
    from pipelines.core.secrets import redact

    with contextlib.suppress(OSError):
        click.echo(redact(f"error: {text}"), err=True)


def announce_planning(recipes: Sequence[str], model: str | None) -> None:
    """Say on standard error what is being planned, unless that is a terminal, where what goes on is shown as it does:
    the log of a CI job is not silent while a model is looked at."""
    if not sys.stderr.isatty():
        click.echo(f"planning {model or 'the default model'} with {', '.join(recipes)}", err=True)


def leave_standard_output() -> None:
    """Keep Python from writing at its end what could not be written before."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_output_file(path: Path | None) -> None:
    """Raise `BadInput` for an output file whose folder is not there, before the work."""
    from pipelines.core.errors import bad_input

    if path and not path.absolute().parent.is_dir():
        raise bad_input(path, "cannot be written: its folder is not there", f"make {path.parent} first")
