"""lm-eval's questions, answered by a runtime that scores token ids: transformers, vLLM and llama.cpp share it."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval.api.model import TemplateLM  # light: it loads neither torch nor transformers

from pipelines import progress
from pipelines.errors import QuantgateError

BATCH = 64
"""Prompts in one request to a runtime; between two of them the progress bar moves."""

Score = tuple[float, bool]
"""A token's log-probability in nats, and whether it was the most likely one."""
Question = tuple[Any, list[int], list[int]]
"""What lm-eval asked (for its cache), the tokens of the context, and those of the answer to score."""


class Ends(NamedTuple):
    """How long to write, and how."""

    max_tokens: int
    stop: tuple[str, ...]
    temperature: float | None
    """None: the likeliest token is taken."""


class TokenLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """What lm-eval's own `HFLM` asks of transformers with its defaults: the same tokens, the same truncation, the same
    stop strings. Log-probabilities are float32's, HFLM's those of the model's dtype.

    A runtime says `name`, `max_length`, `end_text`, `eot_token_id`, `prefix_token_id`, `tok_encode`, `score_answers`
    and `write`.
    """

    name: str
    max_length: int
    """Tokens."""
    end_text: str
    """Of the end-of-sequence token."""
    samples: bool = False
    """Whether it can draw what it writes."""

    def score_answers(self, questions: Sequence[Question]) -> list[list[Score]]:
        """The scores of each question's answer, token by token; contexts are not empty."""
        raise NotImplementedError

    def write(self, prompts: list[list[int]], ends: Ends) -> Iterable[str]:
        """What follows each prompt, greedily or as `ends` says."""
        raise NotImplementedError

    def _loglikelihood_tokens(self, requests: Sequence[Question], **_: Any) -> list[tuple[float, bool]]:
        questions = []
        for asked, context, answer in requests:
            read = (context + answer)[-(self.max_length + 1) :]
            first = max(1, len(read) - len(answer))
            questions.append((asked, read[:first], read[first:]))
        results = []
        for (asked, _context, _answer), scores in zip(questions, self.score_answers(questions), strict=True):
            result = sum(logprob for logprob, _ in scores), all(likeliest for _, likeliest in scores)
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, result)
            results.append(result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], **__: Any) -> list[float]:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((number, make_disjoint_window(window)))
        scored = self._loglikelihood_tokens([(None, *window) for _, window in windows])
        results = [0.0] * len(requests)
        for (number, _), (logprob, _) in zip(windows, scored, strict=True):
            results[number] += logprob
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return results

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """What follows each context.

        Raises:
            QuantgateError: a task wants samples, and the runtime takes none here.
        """
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

        groups: dict[Ends, list[int]] = {}
        for number, request in enumerate(requests):
            settings = normalize_gen_kwargs(request.args[1], 256)
            if settings["do_sample"] and not self.samples:
                raise QuantgateError(f"task {request.task_name} samples; {self.name} here only generates greedily")
            stop = tuple(handle_stop_sequences(settings["until"], eos=self.end_text))
            temperature = settings["temperature"] if settings["do_sample"] else None
            groups.setdefault(Ends(settings["max_gen_toks"], stop, temperature), []).append(number)
        texts = [""] * len(requests)
        for ends, members in groups.items():
            room = self.max_length - ends.max_tokens
            prompts = [self.tok_encode(requests[number].args[0])[-room:] for number in members]
            for number, text in zip(members, self.write(prompts, ends), strict=True):
                texts[number] = postprocess_generated_text(text, list(ends.stop), None)
                self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
        return texts


def batches(items: Sequence[Any], name: str, size: int = BATCH) -> Iterator[list[Any]]:
    """`items`, `size` at a time, with a progress bar."""
    with progress.bar(len(items), name, "prompt") as bar:
        for first in range(0, len(items), size):
            batch = list(items[first : first + size])
            yield batch
            bar.update(len(batch))


class HubLM(TokenLM):
    """A `TokenLM` of a checkpoint folder, with transformers' tokenizer."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from lm_eval.models.utils import resolve_max_length
        from transformers import AutoConfig, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        self.max_length: int = resolve_max_length(config, self.tokenizer)
        self.end_text = str(self.tokenizer.decode(self.eot_token_id))

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of `string`, with the special ones that the tokenizer adds unless it starts with the first."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        special: dict[str, Any] = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **special))
