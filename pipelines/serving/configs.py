"""Configs that serve an artifact: one neutral `Serving`, as the file that each runtime reads."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, assert_never

import yaml

from pipelines.core.errors import Problem, bad_input, refuse
from pipelines.core.strict_yaml import Frozen
from pipelines.serving.loads import TITLES, VERSIONS, Runtime
from pipelines.serving.options import OPTIONS, Option, Setting, Value
from pipelines.serving.served import Served
from pipelines.serving.serving import Serving
from pipelines.serving.where import anywhere, line

FILES: dict[Runtime, str] = {
    "vllm": "vllm.yaml",
    "sglang": "sglang.yaml",
    "tensorrt-llm": "tensorrt-llm.yaml",
    "llama.cpp": "llama-server.ini",
    "ollama": "Modelfile",
}
"""Runtime → name of its config."""
UNTOLD: dict[Setting, tuple[str, str]] = {
    "tensor": ("matrices that GPUs share", "give fewer GPUs"),
    "data": ("copies of a model", "start a server on each GPU, with a config for one"),
    "draft": ("drafts", "take --runtime llama.cpp, which reads the same file"),
    "ngram": ("drafts", "take --runtime llama.cpp, which reads the same file"),
    "no_prefix_caching": ("way to turn prefix caching off", "leave it on"),
}
"""Setting that a runtime may have no name for → what it has not, and what to do."""
NOT_JUDGED = "and the gate has not judged that"


class Config(Frozen):
    """A config, and how it is used."""

    runtime: Runtime
    text: str
    """Content of the file."""
    variables: dict[str, str]
    """Environment variables of the server, for what its file cannot say."""
    notes: tuple[str, ...]
    """Sentences that whoever uses it must know."""

    def commands(self, model: str, file: str) -> tuple[str, ...]:
        """Return the commands that serve `model` by this config in `file`."""
        match self.runtime:
            case "vllm":
                words = ["vllm", "serve", model, "--config", file]
            case "sglang":
                words = ["python", "-m", "sglang.launch_server", "--model-path", model, "--config", file]
            case "tensorrt-llm":
                words = ["trtllm-serve", model, "--extra_llm_api_options", file]
            case "llama.cpp":
                words = ["llama-server", "--models-preset", file]
            case "ollama":
                variables = [f"{name}={value}" for name, value in self.variables.items()]
                create = ["ollama", "create", PurePath(model).stem.lower(), "--file", file]
                return shlex.join([*variables, "ollama", "serve"]), shlex.join(create)
            case _:
                assert_never(self.runtime)
        return (shlex.join(words),)


def make_config(runtime: Runtime, served: Served, serving: Serving, model: str | None = None) -> Config:
    """Return the config with which `runtime` serves an artifact as `serving` says.

    `model` is the path of a GGUF as the config is to name it; as it is, unless given.

    Raises:
        BadInput: the runtime does not load it or loads it as something else, or cannot be told what is asked.
    """
    check_loads(runtime, served)
    options = _options(runtime, serving)
    variables = {name: str(value) for name, value in options.items() if name.isupper()}
    told = {name: value for name, value in options.items() if name not in variables}
    return Config(
        runtime=runtime,
        text=_text(runtime, served, told, model or str(served.model)),
        variables=variables,
        notes=tuple(_notes(runtime, served, serving)),
    )


def check_loads(runtime: Runtime, served: Served) -> None:
    """Raise `BadInput` where `runtime` loads an artifact on no hardware, or as something else."""
    found = anywhere(runtime, served.stored, served.formats)
    if found.answer not in ("refused", "misread"):
        return
    others = [other for other in OPTIONS if anywhere(other, served.stored, served.formats).answer == "native"]
    remedy = f"--runtime {' or '.join(others)} loads it" if others else "no other runtime is known to load it"
    if runtime == "tensorrt-llm" and served.stored != "gguf":
        remedy += "; recipes fp8-modelopt and nvfp4-modelopt are made for TensorRT-LLM"
    schemes = " and ".join(scheme for scheme, _ in served.formats)
    kind = f"holds {schemes} ({served.stored})" if schemes else "is a GGUF"
    what = f"{kind}, and {TITLES[runtime]} {VERSIONS[runtime]} {found.reason}"
    raise bad_input(served.model, f"{what} ({found.answer}; read in {found.source})", remedy)


def _options(runtime: Runtime, serving: Serving) -> dict[str, Value]:
    """Return the runtime's options, by name.

    Raises:
        BadInput: it has none for something that is asked.
    """
    settings, known = serving.settings(), OPTIONS[runtime]
    refuse(_untold(runtime, setting) for setting in settings if setting in UNTOLD and setting not in known)
    if runtime == "llama.cpp" and serving.context:  # there it is the room of all requests together
        settings["context"] = serving.context * (serving.concurrency or 1)
    pairs = ((option, value) for setting, value in settings.items() for option in known.get(setting, ()))
    return {option.name: _value(option, value) for option, value in pairs}


def _untold(runtime: Runtime, setting: Setting) -> Problem:
    what, remedy = UNTOLD[setting]
    return Problem(f"--runtime {runtime}", f"{TITLES[runtime]} has no {what}", remedy)


def _value(option: Option, value: Value) -> Value:
    if option.value is not None:
        return option.value
    return value + option.more if isinstance(value, int) else value


def _text(runtime: Runtime, served: Served, options: Mapping[str, Value], model: str) -> str:
    about = f"For {TITLES[runtime]} {VERSIONS[runtime]}, by quantgate serve-config."
    match runtime:
        case "vllm" | "sglang" | "tensorrt-llm":
            return f"# {about}\n" + yaml.safe_dump(_nested(options), sort_keys=False)
        case "llama.cpp":
            told = {"model": model, "load-on-startup": True, **options}
            lines = (
                f"{name} = {str(value).lower() if isinstance(value, bool) else value}" for name, value in told.items()
            )
            return "\n".join([f"; {about}", "version = 1", "", f"[{served.name}]", *lines, ""])
        case "ollama":
            parameters = (f"PARAMETER {name} {value}" for name, value in options.items())
            return "\n".join([f"# {about}", f"FROM {model}", *parameters, ""])
    assert_never(runtime)


def _nested(options: Mapping[str, Value]) -> dict[str, Any]:
    """Return options as YAML has them: `a.b` as the key b below a."""
    tree: dict[str, Any] = {}
    for name, value in options.items():
        outer, dot, inner = name.partition(".")
        if dot:
            tree.setdefault(outer, {})[inner] = value
        else:
            tree[name] = value
    return tree


def _notes(runtime: Runtime, served: Served, serving: Serving) -> Iterator[str]:
    yield line(runtime, served.stored, served.formats)
    if serving.kv_cache and served.stored == "gguf":
        yield f"{TITLES[runtime]} has no FP8 for keys and values, and caches them in q8_0, of 8.5 bits, {NOT_JUDGED}"
    elif serving.kv_cache and not served.cached_in_fp8:
        yield f"keys and values are cached in FP8 without measured scales, {NOT_JUDGED}; recipe fp8-kv measures them"
    if serving.draft and serving.draft.model:
        yield "what is written greedily stays the same with a draft; `quantgate bench --draft` says what it is worth"
