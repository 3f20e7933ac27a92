"""Good checkpoints with one thing wrong: whatever it is, they become an artifact or are refused with exit code 2."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipelines.cli.main import main
from tests.helpers.families import Make, make

assert make  # a fixture
FILES = ("config.json", "config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json")
"""Which are changed, the config more often than the others."""
VALUES: tuple[Any, ...] = (
    None, "", "x", "é\u2028\x00", -1, 0, 1, 3, 7, 10**9, 2**63, 1e30, 0.5, float("nan"), True, False, [], {}, [1, "a"],
    {"a": [None]}, "0" * 5000,
)  # fmt: skip
"""What may stand where something else should."""

Change = Callable[[random.Random, bytes], bytes]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container within a JSON value, with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def in_json(change: Callable[[random.Random, Any, Any], None]) -> Change:
    """A change of one place in a JSON file."""

    def changed(chance: random.Random, content: bytes) -> bytes:
        value = json.loads(content)
        change(chance, *chance.choice([*places(value)][:400]))
        return json.dumps(value).encode()

    return changed


def replaced(chance: random.Random, container: Any, key: Any) -> None:
    container[key] = chance.choice(VALUES)


def removed(_: random.Random, container: Any, key: Any) -> None:
    del container[key]


def scaled(chance: random.Random, container: Any, key: Any) -> None:
    """A number by a factor; anything else becomes text."""
    number = isinstance(container[key], int | float) and not isinstance(container[key], bool)
    container[key] = container[key] * chance.choice((0.5, 2, -1, 3)) if number else str(container[key])


def cut(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.randrange(len(content))]


def garbled(chance: random.Random, content: bytes) -> bytes:
    where = chance.randrange(len(content))
    return content[:where] + bytes([chance.randrange(256)]) + content[where + 1 :]


CHANGES: tuple[Change, ...] = (
    in_json(replaced), in_json(replaced), in_json(replaced), in_json(removed), in_json(removed), in_json(scaled), cut,
    garbled,
)  # fmt: skip


def check(make: Make, tmp_path: Path, seeds: range) -> None:
    source = make("llama", shards="60KB")
    assert (source / "model.safetensors.index.json").exists()
    for seed in seeds:
        chance = random.Random(seed)
        folder = Path(shutil.copytree(source, tmp_path / "model"))
        file = folder / chance.choice(FILES)
        change = chance.choice(CHANGES)
        file.write_bytes(change(chance, file.read_bytes()))
        done = CliRunner().invoke(main, ["quantize", "fp8", "--model", str(folder), "--json"])
        told = f"seed {seed}, {file.name}: {done.output[-600:]} {done.exception!r}"
        assert done.exit_code in (0, 2), told
        assert isinstance(done.exception, SystemExit | None), told
        assert "Traceback" not in done.output, told
        shutil.rmtree(folder)


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_a_hundred_mutations_end_in_an_artifact_or_a_refusal(make: Make, tmp_path: Path, first: int) -> None:
    check(make, tmp_path, range(first, first + 25))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 1000, 100))
def test_a_thousand_mutations_do(make: Make, tmp_path: Path, first: int) -> None:
    check(make, tmp_path, range(first, first + 100))
