"""vLLM, for `pipelines.runtimes.vllm`: one loaded checkpoint, its scores and its continuations."""

import os
from collections.abc import Callable
from typing import Any

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, so that it ends when this process does
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # pinned threads would share their cores with whatever else runs here
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one more token than the model has positions: it is scored, never read
    "VLLM_CPU_INT4_W4A8": "0",  # with AMX it would round the activations of a W4A16 checkpoint to INT8
    "TORCH_COMPILE_DISABLE": "1",  # vLLM compiles the counting of ranks even in eager mode, which needs a C++ compiler
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
KV_CACHE_GIB = "1"  # on a CPU, unless the user's VLLM_CPU_KVCACHE_SPACE says otherwise; vLLM would take 92% of memory
Report = Callable[[int, int, str], None]
Score = tuple[float, bool]
"""Log-probability of a token in nats, and whether it was the most likely one."""


class LoadedModel:
    """One loaded model."""

    def __init__(self) -> None:
        self._llm: Any = None

    def load(self, folder: str, device: str, max_model_len: int, dtype: str) -> dict[str, str]:
        """Load the checkpoint in `folder`; `max_model_len` is in tokens, prompt and continuation together.

        Keys and values are cached in FP8 where the checkpoint's config says so.

        Raises:
            RuntimeError: this vLLM is built for another kind of device.
        """
        import vllm  # type: ignore[import-not-found]  # of another environment
        from vllm.platforms import current_platform  # type: ignore[import-not-found]

        if current_platform.device_type != device:
            raise RuntimeError(f"this vLLM is built for {current_platform.device_type}, not for {device}")
        if device == "cpu":
            _multiply_fp8_without_onednn()
        self._llm = vllm.LLM(
            model=folder,
            max_model_len=max_model_len,
            dtype=dtype,
            enforce_eager=True,  # compiling takes longer than what we ask for
            distributed_executor_backend="uni",
            trust_remote_code=False,
            disable_log_stats=True,
        )
        return {"version": vllm.__version__}

    def logprobs(self, batch: list[tuple[list[int], list[int]]]) -> list[tuple[list[Score], list[Score]]]:
        """Return, for each prompt with its next tokens, the scores of the prompt's tokens after the first, and those
        of the next tokens, each as if it alone followed the prompt.

        vLLM reads no prefix from its cache when it is asked for the scores of a prompt.
        """
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": prompt} for prompt, _ in batch]
        params = [
            SamplingParams(
                temperature=0, max_tokens=1, prompt_logprobs=1, logprob_token_ids=following, detokenize=False
            )
            for _, following in batch
        ]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [_scores(*asked, output) for asked, output in zip(batch, outputs, strict=True)]

    def generate(self, batch: list[list[int]], max_tokens: int, stop: list[str]) -> list[list[int]]:
        """Return the tokens that follow each prompt, greedily, until a stop string, an end token or `max_tokens`.

        The repetition penalty of the model's generation config applies, as it does in transformers.
        """
        from vllm import SamplingParams

        penalty = self._llm.get_default_sampling_params().repetition_penalty
        params = SamplingParams(temperature=0, max_tokens=max_tokens, stop=stop, repetition_penalty=penalty)
        outputs = self._llm.generate([{"prompt_token_ids": tokens} for tokens in batch], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


def _scores(prompt: list[int], following: list[int], output: Any) -> tuple[list[Score], list[Score]]:
    read = [scores[token] for token, scores in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)]
    (step,) = output.outputs[0].logprobs
    (likeliest,) = output.outputs[0].token_ids
    return (
        [(score.logprob, score.rank == 1) for score in read],
        [(step[token].logprob, token == likeliest) for token in following],
    )


def _multiply_fp8_without_onednn() -> None:
    """Let torch multiply FP8 by itself on CPUs whose AMX lacks FP16.

    There it hands the products to oneDNN, which has no kernel for them and multiplies element by element, a hundred
    times slower than torch's own way.
    """
    import torch

    if torch.cpu._is_amx_fp16_supported():
        return
    multiply = torch._scaled_mm

    def scaled_mm(*arguments: Any, **settings: Any) -> Any:
        with torch.backends.mkldnn.flags(enabled=False):
            return multiply(*arguments, **settings)

    torch._scaled_mm = scaled_mm


def commands(_: Report) -> dict[str, Callable[..., Any]]:
    """Return the requests that vLLM answers: name → function."""
    os.environ.update(SETTINGS)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", KV_CACHE_GIB)
    model = LoadedModel()
    return {"load": model.load, "logprobs": model.logprobs, "generate": model.generate}
