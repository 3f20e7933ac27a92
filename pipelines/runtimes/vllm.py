"""vLLM as a second runtime: does it load what we made, does it compute what transformers computes, and what does it
score? It lives in an environment of its own (`pipelines.environments.isolated`) and is spoken to through pipes.
"""

import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipelines.core.cache import cache_dir
from pipelines.core.device import ComputeDtype, cpu_lines
from pipelines.core.processes import WorkerProcess, clean_variables
from pipelines.core.strict_yaml import Frozen
from pipelines.environments.isolated import serve
from pipelines.formats.packings import Packing
from pipelines.formats.schemes import SchemeName
from pipelines.runtimes.lm_eval import Ends, HubLM, Question, Score, batches
from pipelines.runtimes.loading import load_for_inference, score_tokens
from pipelines.runtimes.prefixes import shared
from pipelines.runtimes.probe import CONTINUATION, PROMPT
from pipelines.serving.loads import loads

NEXT_TOKENS = 128
"""Most next tokens that vLLM scores after one prompt."""
SMALLEST_WINDOW = 2048
"""Fewest tokens of a window that vLLM is started with."""
TOLERANCE = 0.1
ROUNDED_TOLERANCE = 0.4
"""Largest mean difference of tokens' log-probabilities, in nats, where activations, keys or values are rounded to 8
bits or fewer (`TOLERANCE` elsewhere): each runtime then rounds other sums, and some land on the next value. Seen on
the default model: 0.05 and 0.12-0.27, as much as transformers differs from itself in float32. Wrong zero points or
scales everywhere cost more than 10, one misread layer 0.1 to 0.6."""
PERPLEXITY_RATIO = 1.02
"""Largest ratio of the perplexities, beyond three standard errors: a fixed text is a small sample."""


def runs_on_cpu(
    formats: Iterable[tuple[SchemeName, int | None]],
    kv_cache: str | None = None,
    stored: Packing = "compressed-tensors",
) -> str | None:
    """Return why vLLM's CPU build cannot run a checkpoint on this machine; None if it can.

    `formats` are the schemes and group sizes of its modules, which are `stored` so.
    """
    flags = {flag for line in cpu_lines("flags") for flag in line.split()}
    for scheme, group_size in formats:
        found = loads("vllm", stored, scheme, "cpu", group_size)
        if found.answer == "refused":
            return f"{scheme}: vLLM for CPUs {found.reason}"
        if found.flag and found.flag not in flags:
            return f"{scheme}: vLLM for CPUs needs AMX for it (Sapphire Rapids or later)"
    if kv_cache == "FP8" and not flags & {"avx512f", "amx_tile"}:
        return "kv_cache FP8: vLLM for CPUs needs AVX-512 or AMX for it"
    return None


class VllmProcess(WorkerProcess):
    """vLLM with one checkpoint loaded. Each method raises QuantgateError when vLLM does; the process is then over."""

    def __init__(
        self, python: Path, folder: Path, device: str, max_model_len: int, dtype: ComputeDtype | None = None
    ) -> None:
        """Load the checkpoint in `folder` under `python`, the one of an environment that has vLLM.

        `max_model_len` is in tokens, prompt and continuation together.
        """
        self.max_model_len = max_model_len
        super().__init__("vLLM", [str(python), *serve("vllm_runtime")], process_variables(device))
        place = {"folder": str(folder.absolute()), "device": device.partition(":")[0]}
        loaded = self.ask("load", **place, max_model_len=max_model_len, dtype=dtype or _dtype(folder))
        self.version: str = loaded["version"]

    def logprobs(self, batch: Sequence[tuple[list[int], list[int]]]) -> list[tuple[list[Score], list[Score]]]:
        """Return for each prompt with its next tokens the scores of the prompt's tokens after the first, and those of
        the next tokens, each as if it alone followed the prompt."""
        scored = self.ask("logprobs", batch=batch)
        return [([(p, top) for p, top in read], [(p, top) for p, top in following]) for read, following in scored]

    def generate(self, batch: Sequence[list[int]], max_tokens: int, stop: Sequence[str] = ()) -> list[list[int]]:
        """Return the tokens that follow each prompt, greedily."""
        tokens: list[list[int]] = self.ask("generate", batch=batch, max_tokens=max_tokens, stop=stop)
        return tokens


def process_variables(device: str) -> dict[str, str]:
    """Return the environment variables of a process with vLLM: ours, what vLLM remembers in our cache, and for `cuda:N`
    only that GPU."""
    variables = {"VLLM_CACHE_ROOT": str(cache_dir() / "vllm")} | clean_variables()
    _, _, index = device.partition(":")
    if index:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        variables["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(index)] if visible else index
    return variables


def _dtype(folder: Path) -> str:
    """Return the type that transformers would load the checkpoint in; vLLM's choice for float32 is a 16-bit type."""
    config = _config(folder)
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


class Comparison(Frozen):
    """The same checkpoint in vLLM and in transformers, on a fixed text."""

    version: str
    """Version of vLLM."""
    tokens: int
    """Number of scored tokens."""
    mean_difference: float
    max_difference: float
    """Largest absolute difference of a token's log-probability, in nats."""
    tolerance: float
    """Largest `mean_difference` that this format may have, in nats."""
    perplexity_vllm: float
    perplexity_transformers: float
    standard_error: float
    """Standard error, in nats, of the mean signed difference, which is the logarithm of the perplexities' ratio."""
    continuation_vllm: str
    continuation_transformers: str
    """Text that each runtime writes after the prompt, greedily."""
    same_tokens: int
    """Number of leading tokens that both texts share, of `CONTINUATION`. A near tie ends them: they decide nothing."""

    @property
    def agrees(self) -> bool:
        """Whether the runtimes compute the same, within the tolerances above."""
        shift = abs(math.log(self.perplexity_vllm / self.perplexity_transformers))
        return self.mean_difference < self.tolerance and shift < math.log(PERPLEXITY_RATIO) + 3 * self.standard_error


def compare(folder: Path, python: Path, device: str) -> Comparison:
    """Run the checkpoint in `folder` in vLLM and in transformers.

    Raises:
        QuantgateError: vLLM cannot load or run it.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokens: list[int] = tokenizer(PROMPT)["input_ids"]
    ours, our_tokens = _in_transformers(folder, tokens, device)
    with VllmProcess(python, folder, device, len(tokens) + CONTINUATION) as vllm:
        ((read, following),) = vllm.logprobs([(tokens[:-1], tokens[-1:])])
        (their_tokens,) = vllm.generate([tokens], CONTINUATION)
    theirs = [logprob for logprob, _ in (*read, *following)]
    differences = [a - b for a, b in zip(theirs, ours, strict=True)]
    return Comparison(
        version=vllm.version,
        tokens=len(theirs),
        mean_difference=statistics.fmean(map(abs, differences)),
        max_difference=max(map(abs, differences)),
        tolerance=ROUNDED_TOLERANCE if _rounds_activations(folder) else TOLERANCE,
        perplexity_vllm=math.exp(-statistics.fmean(theirs)),
        perplexity_transformers=math.exp(-statistics.fmean(ours)),
        standard_error=statistics.stdev(differences) / math.sqrt(len(differences)),
        continuation_vllm=tokenizer.decode(their_tokens, skip_special_tokens=True),
        continuation_transformers=tokenizer.decode(our_tokens, skip_special_tokens=True),
        same_tokens=shared(our_tokens, their_tokens),
    )


def _rounds_activations(folder: Path) -> bool:
    config = _config(folder).get("quantization_config") or {}
    groups = config.get("config_groups", {}).values()
    return bool(config.get("kv_cache_scheme")) or any(group["input_activations"] for group in groups)


def _in_transformers(folder: Path, tokens: list[int], device: str) -> tuple[list[float], list[int]]:
    """Return the log-probability of each token after the first, and what follows them all, greedily."""
    import torch

    model = load_for_inference(folder, device)
    ids = torch.tensor([tokens], device=device)
    with torch.inference_mode():
        scored = score_tokens(model, ids)
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=CONTINUATION, do_sample=False)
    written: list[int] = output[0, len(tokens) :].tolist()
    del model
    if device != "cpu":
        torch.cuda.empty_cache()  # vLLM takes most of the GPU's memory
    return scored, written


class VllmLM(HubLM):
    """lm-eval's model in vLLM."""

    name = "vllm"

    def __init__(self, folder: Path, python: Path, device: str, dtype: ComputeDtype | None = None) -> None:
        super().__init__(folder)
        self._folder, self._python, self._where, self._dtype = folder, python, device, dtype
        self._process: VllmProcess | None = None

    def score_answers(self, questions: Sequence[Question]) -> list[list[Score]]:
        sequences = [tuple(context + answer) for _, context, answer in questions]
        scores = self._score(sequences)
        return [scores[sequence][-len(answer) :] for sequence, (*_, answer) in zip(sequences, questions, strict=True)]

    def write(self, prompts: list[list[int]], ends: Ends) -> Iterable[str]:
        engine = self._engine(max(map(len, prompts)) + ends.max_tokens)
        for batch in batches(prompts, self.name):
            for tokens in engine.generate(batch, ends.max_tokens, ends.stop):
                yield self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _score(self, sequences: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], list[Score]]:
        """Return the scores of each sequence's tokens after the first. What differs in the last token only is read
        once."""
        following: dict[tuple[int, ...], list[int]] = {}
        for sequence in dict.fromkeys(sequences):
            following.setdefault(sequence[:-1], []).append(sequence[-1])
        asked = [
            (list(prompt), tokens[first : first + NEXT_TOKENS])
            for prompt, tokens in following.items()
            for first in range(0, len(tokens), NEXT_TOKENS)
        ]
        scores: dict[tuple[int, ...], list[Score]] = {}
        if asked:
            engine = self._engine(max(len(prompt) for prompt, _ in asked) + 1)
            for batch in batches(asked, self.name):
                for (prompt, tokens), (read, last) in zip(batch, engine.logprobs(batch), strict=True):
                    for token, score in zip(tokens, last, strict=True):
                        scores[*prompt, token] = [*read, score]
        return scores

    def _engine(self, tokens: int) -> VllmProcess:
        """Return vLLM with room for sequences of `tokens`.

        It sets memory aside for its longest sequence, and a model's whole context may be more than there is, so the
        room follows what is asked, by powers of two.
        """
        if self._process is None or self._process.max_model_len < tokens:
            if self._process:
                self._process.stop()
            room = min(max(SMALLEST_WINDOW, 1 << (tokens - 1).bit_length()), self.max_length + 1)
            self._process = VllmProcess(self._python, self._folder, self._where, room, self._dtype)
        return self._process
