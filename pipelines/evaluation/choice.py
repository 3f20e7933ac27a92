"""The choice of the runtime that loads a model for lm-eval; each is imported only where it is the one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.core.cache import file_digest
from pipelines.evaluation.patches import patched
from pipelines.evaluation.subject import Runtime, Setting, Subject

if TYPE_CHECKING:
    from pipelines.runtimes.lm_eval import TokenLM

MODULES: dict[Runtime, tuple[str, ...]] = {
    "transformers": ("pipelines.runtimes.transformers_lm",),
    "vllm": ("pipelines.runtimes.vllm", "pipelines.environments.workers.vllm_runtime"),
    "llama.cpp": ("pipelines.runtimes.llama_cpp", "pipelines.quantization.gguf.convert"),
}
"""Full names of the modules that load and run a model, by runtime."""
LLAMA_WORKER = Path(__file__).parents[1] / "environments" / "llama_worker" / "worker.cpp"
"""Source of the program that runs a GGUF."""


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
    """Return the parts of a setting that decide the results, beside the code of `MODULES`."""
    inputs = {"device": setting.device, "runtime": setting.name, "dtype": setting.dtype}
    return {**inputs, "worker": file_digest(LLAMA_WORKER)} if setting.runtime == "llama.cpp" else inputs
