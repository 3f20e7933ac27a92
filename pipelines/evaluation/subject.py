"""The model that is evaluated, and the runtime that evaluates it, as data."""

from pathlib import Path
from typing import Literal

from pipelines.checkpoint.dtypes import choose_dtype, own_dtype
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core.cache import file_digest
from pipelines.core.device import ComputeDtype, Dtype, choose_device
from pipelines.core.errors import bad_input
from pipelines.core.paths import expanded
from pipelines.core.strict_yaml import Frozen
from pipelines.environments import isolated, llama_build
from pipelines.quantization.artifact import Artifact, GgufArtifact

Runtime = Literal["transformers", "vllm", "llama.cpp"]
"""Name of the program that loads a model and computes its log-probabilities."""


class Subject(Frozen):
    """The model that is evaluated: a checkpoint, or a GGUF."""

    label: str
    digest: str
    """Digest of the model's files."""
    checkpoint: Checkpoint | None = None
    gguf: Path | None = None

    @property
    def source(self) -> Checkpoint:
        """Checkpoint of a model that is no GGUF."""
        assert self.checkpoint
        return self.checkpoint


class Setting(Frozen):
    """The runtime that evaluates, on which device, and in which type."""

    runtime: Runtime
    name: str
    """Name of the runtime, with what tells its version where that is none of our packages'."""
    python: Path | None
    """Interpreter of vLLM's environment."""
    device: str
    dtype: ComputeDtype | None
    """Type that the model computes in; None where the runtime chooses one for each product (llama.cpp)."""


def find_subject(model: Artifact | Checkpoint | str | Path) -> Subject:
    """Return the model to evaluate: an artifact, a checkpoint, or either by its folder, its GGUF file or its name.

    Raises:
        BadInput: there is no such model, or it cannot be read.
    """
    if isinstance(model, Artifact):
        label = f"{model.source.label} ({model.recipe.name})"
        if isinstance(model, GgufArtifact):
            return Subject(label=label, digest=model.digest, gguf=model.file)
        return Subject(label=label, digest=model.digest, checkpoint=read_checkpoint(model.checkpoint))
    if isinstance(model, str | Path) and Path(model).suffix == ".gguf":
        from pipelines.checkpoint.gguf_file import read_gguf

        file = expanded(model).absolute()
        read_gguf(file)
        return Subject(label=file.stem, digest=file_digest(file), gguf=file)
    if not isinstance(model, Checkpoint):
        from pipelines.checkpoint.load import load_model

        model = load_model(model)
    return Subject(label=model.label, digest=model.digest, checkpoint=model)


def choose_setting(
    subject: Subject, device: str | None, runtime: Runtime, python: Path | None, dtype: Dtype
) -> Setting:
    """Return the setting that evaluates `subject`.

    A GGUF is evaluated in llama.cpp, and vLLM gets an environment where `python` is not given.

    Raises:
        BadInput: there is no such device; a `dtype` for a GGUF, which has its own.
    """
    runtime = "llama.cpp" if subject.gguf else runtime
    device = choose_device(device)
    if runtime == "vllm":
        python = python or isolated.make("vllm")
    computes = _dtype(subject, runtime, device, dtype)
    return Setting(runtime=runtime, name=_versioned(runtime, python), python=python, device=device, dtype=computes)


def _versioned(runtime: Runtime, python: Path | None) -> str:
    """Return the runtime's name, with what tells its version where that is none of our packages'."""
    if runtime == "vllm":
        assert python
        return f"vllm {isolated.installed(python, 'vllm')}"
    return llama_build.version() if runtime == "llama.cpp" else runtime


def _dtype(subject: Subject, runtime: Runtime, device: str, wanted: Dtype) -> ComputeDtype | None:
    """Return the type that the subject computes in; None where the runtime chooses one for each product (llama.cpp)."""
    if runtime == "llama.cpp":
        if wanted != "auto" and subject.gguf:
            what = "is not for a GGUF, which llama.cpp computes as the file says"
            raise bad_input(f"--dtype {wanted}", what, "leave it out")
        return None
    if runtime == "vllm" and wanted == "auto":
        return own_dtype(subject.source)
    return choose_dtype(wanted, device, subject.source)
