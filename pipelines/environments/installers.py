"""The programs that fill an environment with packages: uv where it is, which is faster, else pip.

pip reads its own configuration. uv does not read pip's, so it is told here: indexes, links, constraints and the
certificate. What uv's own configuration says comes on top.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.core.processes import clean_variables, run_logged
from pipelines.core.strict_yaml import Frozen


class Installer(Frozen):
    """The commands that make and fill one environment."""

    create: tuple[str, ...]
    """Command that makes the environment, empty."""
    install: tuple[str, ...]
    """Command that installs the requirements that follow it."""
    uninstall: tuple[str, ...]
    """Command that removes the distributions that follow it."""
    options: tuple[str, ...] = ()
    """Options of `install` that name the indexes and places it looks in."""
    constraints: tuple[str, ...] = ()
    """Options of `install` that limit versions; those of a lock, which says each version itself, get none."""
    variables: dict[str, str]


def installer(folder: Path, python: Path) -> Installer:
    """Return the installer for a new environment at `folder`, which will have its Python, of our version, at
    `python`."""
    uv = find_uv()
    if not uv:
        pip = (str(python), "-m", "pip")
        quiet = ("--no-input", "--disable-pip-version-check")
        return Installer(
            create=(sys.executable, "-m", "venv", str(folder)),
            install=(*pip, "install", *quiet),
            uninstall=(*pip, "uninstall", "--yes", *quiet),
            variables={},
        )
    configured = pip_configuration()
    look_in = ("index-url", "extra-index-url", "find-links")
    options = [f"--{name}={value}" for name in look_in for value in configured.get(name, ())]
    offline = ["--no-index"] if configured.get("no-index", ("",))[-1].lower() in ("1", "true", "yes", "on") else []
    return Installer(
        create=(uv, "venv", "--quiet", "--no-python-downloads", "--python", sys.executable, str(folder)),
        # as pip does: the best version of any index, not of the first that has one
        install=(uv, "pip", "install", "--python", str(python), "--index-strategy", "unsafe-best-match"),
        uninstall=(uv, "pip", "uninstall", "--python", str(python)),
        options=(*options, *offline),
        constraints=tuple(f"--constraint={file}" for file in configured.get("constraint", ())),
        variables={"SSL_CERT_FILE": configured["cert"][-1]} if configured.get("cert") else {},
    )


def find_uv() -> str | None:
    """Return uv, beside our Python or on the path."""
    return shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def pip_configuration() -> dict[str, tuple[str, ...]]:
    """Return what pip's files and variables say: option → values; nothing where there is no pip."""
    command = [sys.executable, "-m", "pip", "config", "list", "--disable-pip-version-check"]
    done = subprocess.run(command, env=clean_variables(), capture_output=True, text=True, check=False)
    found: dict[str, dict[str, tuple[str, ...]]] = {"global": {}, "install": {}, ":env:": {}}
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in found:
            found[section][option] = tuple(str(ast.literal_eval(value)).split())
    return {**found["global"], **found["install"], **found[":env:"]}  # the last said rules, as in pip


def fill(with_: Installer, requirements: Sequence[str], lock: Path | None, unwanted: Sequence[str], log: Path) -> None:
    """Make the environment, install `requirements` if any, then just what `lock` says, and remove what is `unwanted`.

    Raises:
        QuantgateError: a step failed; with the end of `log`.
    """
    find = [*with_.install, *with_.options]
    commands = [list(with_.create)]
    if requirements:
        commands.append([*find, *with_.constraints, *requirements])
    if lock:
        commands.append([*find, "--no-deps", "--require-hashes", "--requirement", str(lock)])
    if unwanted:
        commands.append([*with_.uninstall, *unwanted])
    for command in commands:
        run_logged(command, log, variables=with_.variables)
