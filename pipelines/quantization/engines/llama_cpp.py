"""The engine of GGUF recipes: llama.cpp's converter and `llama-quantize`, and an importance matrix of calibration text.

llama.cpp decides the type of each tensor; the plan has predicted it, and `verify` compares.
"""

import shutil
from pathlib import Path

from pipelines.calibration.tokens import CalibrationTokens
from pipelines.checkpoint.gguf_file import IMATRIX
from pipelines.core.cache import package_versions
from pipelines.core.errors import QuantgateError
from pipelines.core.processes import run_logged
from pipelines.environments import llama_build
from pipelines.planning.gguf import file_name
from pipelines.planning.plan import GgufPlan
from pipelines.quantization.gguf.convert import convert
from pipelines.quantization.gguf.imatrix import write_imatrix
from pipelines.quantization.written import Written
from pipelines.recipe.methods import Gguf
from pipelines.runtimes import llama_cpp

LICENCES = ("LICENSE", "NOTICE")
"""Beginnings of the names of licence files."""
LONGEST_TEXT = 127
"""Most bytes of a text that llama-quantize writes into a file's metadata."""


def quantize(plan: GgufPlan, tokens: CalibrationTokens | None, folder: Path) -> Written:
    """Write the GGUF, the importance matrix beside it, and the source's licence into `folder`."""
    source = convert(plan.checkpoint).file
    if tokens:
        write_imatrix(plan, tokens, folder / IMATRIX)
    run_tool(plan, tokens, source, folder)
    for name in plan.checkpoint.companions:
        if name.startswith(LICENCES):
            shutil.copyfile(plan.checkpoint.folder / name, folder / name)
    return Written(quantization_config={}, engine=llama_build.version())


def run_tool(plan: GgufPlan, tokens: CalibrationTokens | None, source: Path, folder: Path) -> Path:
    """Quantize the F16 GGUF `source` with the importance matrix that is in `folder`, and return the file it became.

    Raises:
        QuantgateError: llama-quantize failed, or wrote no file.
    """
    method = plan.recipe.quantize
    assert isinstance(method, Gguf)
    command = [llama_cpp.program("llama-quantize"), *_options(method), *_provenance(plan, tokens)]
    name, log = file_name(plan.checkpoint, method), folder.parent / "quantize.log"
    files = [str(source), name, method.type, str(llama_cpp.threads())]
    run_logged([*command, *files], log, folder)  # in its folder: the file remembers the matrix's name as it is given
    if not (folder / name).is_file():
        raise QuantgateError(f"llama-quantize wrote no file; see {log}")
    return folder / name


def _options(method: Gguf) -> list[str]:
    """Return llama-quantize's options for what a recipe says of tensors and their types."""
    options = ["--imatrix", IMATRIX] if method.imatrix else []
    if method.output:
        options += ["--output-tensor-type", method.output.lower()]
    if method.embedding:
        options += ["--token-embedding-type", method.embedding.lower()]
    for pattern, chosen in method.tensors.items():
        options += ["--tensor-type", f"{pattern}={chosen.lower()}"]
    return options


def _provenance(plan: GgufPlan, tokens: CalibrationTokens | None) -> list[str]:
    """Return llama-quantize's options that let the file say how it was made."""
    facts = {
        "version": package_versions()["quantgate"],
        "recipe": plan.recipe.name,
        "source": plan.checkpoint.hub_id or plan.checkpoint.label,
        "source_digest": plan.checkpoint.digest,
        "calibration_digest": tokens.digest if tokens else "",
    }
    pairs = [("--override-kv", f"quantgate.{key}=str:{value[:LONGEST_TEXT]}") for key, value in facts.items() if value]
    return [word for pair in pairs for word in pair]
