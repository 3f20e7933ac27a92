"""Shared fixtures: a cache of the tests' own, the real default model, and small real checkpoints."""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.load import load_model
from pipelines.core.cache import cache_dir
from pipelines.environments import isolated
from pipelines.runtimes import distance
from pipelines.verification import reader
from tests.helpers import servers, warm, warm_reader
from tests.helpers.fakes import anatomy_of, unreadable_unless_fake
from tests.helpers.servers import Registry, Store

PLAIN = ("--set", "quantize.ignore=[lm_head]")
"""Makes the recipe `fp8` quantize every layer, for checkpoints that have no attention or few layers."""

EASY = """
version: 1
name: easy
summary: of the tests; without the correction for chance, so that a model of random weights can pass
tasks: [{task: sciq, limit: 48}]
policy: {decide: point, chance_correction: false}
"""

VOCABULARY = 4096
"""Tokens of a small checkpoint: a head of all 49,152 would be nine tenths of its work."""

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


SHARED = ("tasks", "default-model", "probe")
"""Stages whose results take long, are the same for every cache, and are no test's subject but in one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, so that no process is left alone with one of them when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache for the session; only the fetched wheels (digest pinned) are shared with the user's."""
    fetched = cache_dir() / "wheels"
    fetched.mkdir(parents=True, exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    (folder / "wheels").symlink_to(fetched)
    top = tmp_path_factory.getbasetemp()
    common = (top.parent if "PYTEST_XDIST_WORKER" in os.environ else top) / "stages"  # of all processes of this session
    (folder / "stages").mkdir()
    for stage in SHARED:
        (common / stage).mkdir(parents=True, exist_ok=True)
        (folder / "stages" / stage).symlink_to(common / stage)
    before = os.environ.get("QUANTGATE_CACHE")
    os.environ["QUANTGATE_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["QUANTGATE_CACHE"]
    else:
        os.environ["QUANTGATE_CACHE"] = before


def own_cache(folder: Path, cache: Path) -> Path:
    """Make `folder` a cache of a test's own, which has of the session's what `cache` has of the user's."""
    (folder / "stages").mkdir(parents=True)
    for name in ("wheels", *(f"stages/{stage}" for stage in SHARED)):
        (folder / name).symlink_to((cache / name).resolve())
    return folder


@pytest.fixture(scope="session", autouse=True)
def warm_readers() -> Iterator[None]:
    """Verification starts its reader from a process that has the imports, here and in commands (`helpers.warm`)."""
    with warm_reader.serving() as command, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "command", lambda _: command)
        yield


@pytest.fixture(scope="session", autouse=True)
def short_texts() -> Iterator[None]:
    """Verification measures distances on short pieces of text, here and in commands (`helpers.warm`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distance, "DISTANCE_CONTEXT", warm.CONTEXT)
        yield


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """What earlier tests left is not looked at when verification collects garbage: that took half of its time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm2(cache: Path) -> Checkpoint:
    """The embedded default model, converted once for the session."""
    assert cache
    return load_model()


@pytest.fixture(scope="session")
def tiny(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A four-layer Llama of 0.4 M random weights with the real tokenizer's first tokens; do not change it, copy it."""
    return make_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny", smollm2)


def make_tiny(folder: Path, tokenizer_from: Checkpoint, tokens: int = VOCABULARY, **config: object) -> Path:
    """Write a small Llama checkpoint with random weights (seed 0) and a tokenizer's first `tokens` into `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, object] = {
        "vocab_size": tokens,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(settings | config))).to(torch.bfloat16)
    model.save_pretrained(folder)
    shutil.copyfile(tokenizer_from.folder / "tokenizer_config.json", folder / "tokenizer_config.json")
    cut = _first_tokens(tokenizer_from.folder / "tokenizer.json", tokens)
    (folder / "tokenizer.json").write_text(cut, encoding="utf-8")
    return folder


@lru_cache(maxsize=2)
def _first_tokens(file: Path, tokens: int) -> str:
    """Return the byte-level BPE tokenizer in `file` cut to its first `tokens`, which need none of the others."""
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < tokens}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    return json.dumps(tokenizer, ensure_ascii=False)


@pytest.fixture
def tiny_copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of `tiny` that a test may break."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Runs the real command in an empty folder, as a user would, in a process of its own."""
    workplace = tmp_path / "workplace"
    workplace.mkdir()

    def call(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
        words, whole = [*map(str, arguments)], {**os.environ, **environment}
        if warm.is_current(whole):
            return subprocess.CompletedProcess(words, *warm.call(words, workplace, whole))
        command = [sys.executable, "-m", "pipelines.cli", *words]
        return subprocess.run(command, cwd=workplace, env=whole, capture_output=True, text=True, check=False)

    return call


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of checkpoints that are headers and no model: transformers is not asked about these."""
    monkeypatch.setattr("pipelines.planning.stage.examine", anatomy_of)
    monkeypatch.setattr("pipelines.planning.stage.unreadable", unreadable_unless_fake)


@pytest.fixture
def vllm_python(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the environment in the user's own cache, which is made there unless it is."""
    with monkeypatch.context() as patch:
        patch.setenv("QUANTGATE_CACHE", str((cache / "wheels").resolve().parent))
        return isolated.make("vllm")


@pytest.fixture
def llama_cpp(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The programs of llama.cpp in the user's own cache, compiled there unless they are; the session's uses them."""
    return _compiled("llama-cpp", cache, monkeypatch)


@pytest.fixture
def llama_server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with llama.cpp's server and its own `llama-imatrix`, which quantgate does not run."""
    return _compiled("llama-server", cache, monkeypatch)


def _compiled(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    own = (cache / "wheels").resolve().parent
    with monkeypatch.context() as patch:
        patch.setenv("QUANTGATE_CACHE", str(own))
        programs = isolated.make(name)
    if not (cache / "environments").exists():
        (cache / "environments").symlink_to(own / "environments")
    return programs


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Every client finds its credentials where it looks for them, and nothing else of this machine's."""
    for name in ("HF_TOKEN", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-the-tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-tests")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return monkeypatch


@pytest.fixture
def docker(environment: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Registry]:
    """An empty container registry that one is logged in to."""
    environment.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with servers.registry(tmp_path / "registry") as found:
        servers.log_in(tmp_path / "docker", found.host)
        yield found


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Store]:
    """An S3 server of the session; a test takes a prefix of its own."""
    with servers.store() as found:
        yield found


@pytest.fixture
def s3(environment: pytest.MonkeyPatch, s3_server: Store) -> Store:
    """The S3 server, as the one that clients of this process look for."""
    environment.setenv("AWS_ENDPOINT_URL", s3_server.url)
    return s3_server


def edit_json(path: Path, **values: object) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


BEAMS = {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 2}
"""A generation config for which transformers fetches code, and which writes two answers."""


def spoil(folder: Path, tensor: str, value: float) -> None:
    """Put `value` into a tensor of the checkpoint in `folder`."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights[tensor].view(-1)[-1] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_token(model: Path, **special: str) -> Path:
    """Give the tokenizer of `model` special tokens, with numbers that the embedding has no rows for."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(model)
    return model
