"""The CI files: they run make and hardly anything else, keep secrets where they are needed, and pin what they use."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.publishing.places.targets import parse_target
from tests.helpers.paths import ROOT

ACTION = ROOT / ".github/actions/quantgate/action.yml"
RELEASE = ROOT / ".github/workflows/release.yml"
EXAMPLE = ROOT / "examples/ci/github/quantize.yml"
GITLAB = ROOT / "examples/ci/gitlab/.gitlab-ci.yml"
WORKFLOWS = [*sorted((ROOT / ".github/workflows").glob("*.yml")), EXAMPLE]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PLUMBING = {
    ".ci/run",
    """printf '%s' "$REGISTRY_PASSWORD" | docker login "$REGISTRY" --username "$REGISTRY_USERNAME" --password-stdin""",
    'docker logout "$REGISTRY"',
    """(umask 077 && printf '%s\\n' "$SIGNING_KEY_PEM" > "$SIGNING_KEY")""",
    'rm -f "$SIGNING_KEY"',
    'test ! -f "$OUT/summary.md" || cat "$OUT/summary.md" >> "$GITHUB_STEP_SUMMARY"',
    'git clone --quiet "$QUANTGATE_REPOSITORY" "$QUANTGATE"',
    'git -C "$QUANTGATE" checkout --quiet --detach "$QUANTGATE_COMMIT"',
    'test -z "$REGISTRY_AUTH" || install -D -m 600 "$REGISTRY_AUTH" ~/.docker/config.json',
}
"""All that is run besides make."""
CREDENTIALS = {
    "hf-token": "Quantize, judge and publish",
    "aws-access-key-id": "Quantize, judge and publish",
    "aws-secret-access-key": "Quantize, judge and publish",
    "signing-password": "Quantize, judge and publish",
    "signing-key": "Put the signing key into a file",
    "registry-username": "Log in to the registry",
    "registry-password": "Log in to the registry",
}
"""The action's inputs that are secret → the one step that has them."""


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def _jobs(path: Path) -> dict[str, Any]:
    jobs: dict[str, Any] = _load(path)["jobs"]
    return jobs


def _steps() -> Iterator[dict[str, Any]]:
    for path in WORKFLOWS:
        for job in _jobs(path).values():
            yield from job.get("steps", [])
    yield from _load(ACTION)["runs"]["steps"]


def _is_known(line: str) -> bool:
    found = re.fullmatch(r'make(?: -C "\$QUANTGATE")? ([a-z-]+)', line)
    return found[1] in TARGETS if found else line in PLUMBING


def test_steps_run_make_and_a_few_known_lines() -> None:
    lines = [line for step in _steps() for line in step.get("run", "").splitlines()]
    assert "make release" in lines
    assert [line for line in lines if not _is_known(line)] == []  # so none holds an expression, ${{ }}, either
    assert not _is_known("make nothing")


def test_gitlab_runs_make_and_a_few_known_lines() -> None:
    jobs = [job for job in _load(GITLAB).values() if isinstance(job, dict)]
    lines = [line for job in jobs for part in ("before_script", "script") for line in job.get(part, [])]
    assert 'make -C "$QUANTGATE" release' in lines
    assert [line for line in lines if not _is_known(line)] == []
    assert _load(GITLAB)["judge"]["variables"] == {"NO_PUBLISH": "1"}


def test_everything_used_is_pinned_to_one_commit() -> None:
    pins: dict[str, set[str]] = {}
    for line in "\n".join(path.read_text() for path in (*WORKFLOWS, ACTION)).splitlines():
        if found := re.match(r"\s*(?:- )?uses: (?!\./)(.*)", line):
            pinned = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/[\w./-]+)?@([0-9a-f]{40}(?: # v[\d.]+)?)", found[1])
            assert pinned, f"not pinned: {line}"
            pins.setdefault(pinned[1], set()).add(pinned[2])
    assert pins.keys() >= {"actions/checkout", "actions/setup-python", "actions/cache", "actions/upload-artifact"}
    assert {name: found for name, found in pins.items() if len(found) > 1} == {}


def test_permissions_are_the_least() -> None:
    assert _load(ROOT / ".github/workflows/ci.yml")["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in _jobs(ROOT / ".github/workflows/ci.yml").values())
    assert list(_load(RELEASE)[True]) == ["workflow_call"]  # YAML's `on`; what it may do is its caller's to grant
    assert not any("permissions" in part for part in (_load(RELEASE), *_jobs(RELEASE).values()))
    judge, publish = _jobs(EXAMPLE)["judge"], _jobs(EXAMPLE)["publish"]
    assert _load(EXAMPLE)["permissions"] == {}
    assert judge["permissions"] == {"contents": "read"}
    assert publish["permissions"] == {"contents": "read", "packages": "write"}


def test_a_pull_request_has_no_secrets_and_publishes_nothing() -> None:
    judge, publish = _jobs(EXAMPLE)["judge"], _jobs(EXAMPLE)["publish"]
    assert (judge["if"], publish["if"]) == ("github.event_name == 'pull_request'", "github.event_name == 'push'")
    assert "secrets" not in judge and "publish" not in judge["with"]
    assert _load(RELEASE)[True]["workflow_call"]["inputs"]["publish"]["default"] is False
    assert not any(secret.get("required") for secret in _load(RELEASE)[True]["workflow_call"]["secrets"].values())
    assert not any("pull_request_target" in path.read_text() for path in WORKFLOWS)
    assert all(
        step["with"]["persist-credentials"] is False
        for step in _steps()
        if step.get("uses", "").startswith("actions/checkout@")
    )


def test_secrets_reach_only_the_step_that_needs_them() -> None:
    release = _jobs(RELEASE)["release"]
    outside = {**release, "steps": [step for step in release["steps"] if step["name"] != "Quantize, judge and publish"]}
    assert "secrets." not in json.dumps(outside)
    call = next(step for step in release["steps"] if step not in outside["steps"])
    assert "env" not in call  # it would reach every step of the action
    given = {name for name, value in call["with"].items() if "secrets." in value}
    assert given == CREDENTIALS.keys()
    for step in _load(ACTION)["runs"]["steps"]:
        values = json.dumps([step.get("env", {}), step.get("with", {})])
        for name, place in CREDENTIALS.items():
            assert (f"${{{{ inputs.{name} }}}}" in values) == (step.get("name") == place), (step.get("name"), name)


def _linked(folder: Path) -> Path:
    """A copy in which workflows call each other by path, so that actionlint checks what they pass."""
    (folder / ".git").mkdir(parents=True)
    shutil.copytree(ROOT / ".github", folder / ".github")
    calls = re.sub(r"your-org/quantgate/(\S+)@0{40}", r"./\1", EXAMPLE.read_text())
    (folder / ".github/workflows/quantize.yml").write_text(calls)
    release = folder / ".github/workflows/release.yml"
    release.write_text(release.read_text().replace("uses: ./.quantgate/", "uses: ./"))
    return folder


def _actionlint(folder: Path, *files: Path) -> "subprocess.CompletedProcess[str]":
    program = Path(sys.executable).with_name("actionlint")
    command = [str(program), "-shellcheck=", "-pyflakes=", *map(str, files)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    for done in (_actionlint(ROOT, *WORKFLOWS), _actionlint(_linked(tmp_path / "linked"))):
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("file", "good", "bad"),
    [
        ("release.yml", "runs-on:", "runs_on:"),
        ("release.yml", "inputs.artifact", "inputs.artefact"),
        ("release.yml", "hf-token:", "hf-tokens:"),
        ("quantize.yml", "registry:", "registries:"),
        ("quantize.yml", "SIGNING_KEY:", "SIGNING_KEYS:"),
    ],
)
def test_actionlint_finds_what_is_broken(tmp_path: Path, file: str, good: str, bad: str) -> None:
    path = _linked(tmp_path / "linked") / ".github/workflows" / file
    assert good in path.read_text()
    path.write_text(path.read_text().replace(good, bad))
    done = _actionlint(tmp_path / "linked")
    assert done.returncode == 1
    assert bad.removesuffix(":").removeprefix("inputs.").lower() in done.stdout.lower()


def _make_release(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """`make release` with a quantgate that prints its arguments instead."""
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / "quantgate"
    program.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(0o755)
    (folder / ".ready").touch()
    unset = ("FILE", "OUT", "DRY", "NO_PUBLISH", "SIGNING_KEY", "SIGN_KEYLESS", "MAKEFLAGS", "MAKELEVEL")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = ["make", "--no-print-directory", "release", f"VENV={folder}", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**environment, **variables}, capture_output=True, text=True, check=False
    )


def test_make_release_passes_its_options_on(tmp_path: Path) -> None:
    every = ("OUT=a folder", "DRY=1", "NO_PUBLISH=1", "SIGNING_KEY=key.pem", "SIGN_KEYLESS=1")
    options = ["--out", "a folder", "--dry-run", "--no-publish", "--signing-key", "key.pem", "--sign-keyless"]
    assert json.loads(_make_release(tmp_path, "FILE=r.yaml").stdout) == ["release", "r.yaml"]
    assert json.loads(_make_release(tmp_path, "FILE=r.yaml", *every).stdout) == ["release", "r.yaml", *options]
    nameless = _make_release(tmp_path)
    assert nameless.returncode == 2 and "say which: make release FILE=release.yaml" in nameless.stderr


def test_make_release_takes_names_literally(tmp_path: Path) -> None:
    name = f"'\"; touch {tmp_path}/a; $(shell touch {tmp_path}/b) `touch {tmp_path}/c` $$HOME"
    done = _make_release(tmp_path, FILE=name, OUT=name, NO_PUBLISH="", SIGNING_KEY="")
    assert json.loads(done.stdout) == ["release", name, "--out", name]
    assert {path.name for path in tmp_path.iterdir()} == {"bin", ".ready"}


def test_the_example_release_names_what_there_is() -> None:
    release = _load(ROOT / "examples/release.yaml")
    assert [name for name in release["recipes"] if not (ROOT / "recipes" / f"{name}.yaml").is_file()] == []
    names = {"release": release["name"], "model": release["models"][0], "recipe": release["recipes"][0]}
    targets = [str(parse_target(target, **names)) for target in release["targets"]]
    assert [target.partition(":")[0] for target in targets] == ["s3", "oci", "hf"]


def test_the_page_names_every_secret() -> None:
    page = (ROOT / "docs/ci.md").read_text()
    assert [name for name in _load(RELEASE)[True]["workflow_call"]["secrets"] if f"`{name}`" not in page] == []
    assert [name for name in re.findall(r"\]\((\.\./[^)]+)\)", page) if not (ROOT / "docs" / name).exists()] == []
