"""The choice of the runtime that loads a model for lm-eval; each is imported only where it is the one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.core.cache import file_digest
from pipelines.evaluation.patches import patched
from pipelines.evaluation.subject import Runtime, Setting, Subject

if TYPE_CHECKING:
    from pipelines.runtimes.lm_eval import TokenLM

CODE: dict[Runtime, tuple[str, ...]] = {
    "transformers": (
        "runtimes/lm_eval.py",
        "runtimes/transformers_lm.py",
        "runtimes/prefixes.py",
        "checkpoint/dtypes.py",
        "runtimes/loading.py",
        "runtimes/dequantize.py",
        "formats/activations.py",
        "formats/repack.py",
        "formats/packings.py",
        "formats/rounding.py",
    ),
    "vllm": ("runtimes/lm_eval.py", "runtimes/vllm.py", "environments/workers/vllm_runtime.py"),
    "llama.cpp": (
        "runtimes/lm_eval.py",
        "runtimes/llama_cpp.py",
        "quantization/gguf/convert.py",
        "environments/llama_worker/worker.cpp",
    ),
}
"""Files of the code that loads and runs a model, by runtime."""
ASKING = ("tasks", "task", "rows", "patches")
"""Modules of this package that decide what is asked, and what an answer scores."""


def load_lm(subject: Subject, setting: Setting) -> "TokenLM":
    """Return the model, loaded, as lm-eval asks one."""
    match setting.runtime:
        case "llama.cpp":
            from pipelines.quantization.gguf import convert
            from pipelines.runtimes import llama_cpp

            return llama_cpp.LlamaLM(subject.gguf or convert.convert(subject.source).file, setting.device)
        case "vllm":
            from pipelines.runtimes import vllm

            assert setting.python
            return vllm.VllmLM(subject.source.folder, setting.python, setting.device, setting.dtype)
        case "transformers":
            from pipelines.runtimes import transformers_lm

            with patched():
                return transformers_lm.TransformersLM(subject.source.folder, setting.device, setting.dtype)


def setting_inputs(setting: Setting) -> dict[str, Any]:
    """Return what of a setting decides the results, digests of the code that asks and runs included."""
    ours = Path(__file__).parents[1]
    files = (*(f"evaluation/{name}.py" for name in ASKING), *CODE[setting.runtime])
    code = [file_digest(ours / name) for name in files]
    return {"device": setting.device, "runtime": [setting.name, *code], "dtype": setting.dtype}
