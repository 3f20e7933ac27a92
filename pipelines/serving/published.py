"""The configs that a published artifact carries: one for each runtime that is known to serve it."""

from pathlib import Path, PurePosixPath

from pipelines.serving.configs import FILES, make_config
from pipelines.serving.loads import Runtime
from pipelines.serving.served import read_served
from pipelines.serving.serving import make_serving
from pipelines.serving.where import serves

FOLDER = "serve"
"""Folder of an artifact that has its configs."""
NAMES: dict[Runtime, str] = {runtime: f"{FOLDER}/{name}" for runtime, name in FILES.items()}
"""Runtime → path of its config in an artifact."""


def published_configs(place: Path) -> dict[str, str]:
    """Return the configs of the artifact in `place`, path → text, for one GPU or a CPU.

    A GGUF is named as its runtime looks for it: llama-server from where it is started, which is to be the artifact's
    folder, and Ollama from where the Modelfile is.
    """
    served = read_served(place)
    name = served.model.name
    named: dict[Runtime, str] = {"llama.cpp": name, "ollama": str(PurePosixPath("..", name))}
    return {
        path: make_config(runtime, served, make_serving(runtime, served), named.get(runtime)).text
        for runtime, path in NAMES.items()
        if serves(runtime, served.stored, served.formats)
    }
