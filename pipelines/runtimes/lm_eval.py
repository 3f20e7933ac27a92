"""lm-eval's questions, answered by a runtime that scores token ids: transformers, vLLM and llama.cpp share it."""

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval.api.model import TemplateLM  # light: it loads neither torch nor transformers

from pipelines.checkpoint.limits import positions
from pipelines.core import progress
from pipelines.core.errors import QuantgateError, bad_input, brief

BATCH = 64
"""Prompts in one request to a runtime; between two of them the progress bar moves."""
MOST_WRITTEN = 256
"""Most tokens of an answer whose task sets no limit (lm-eval's default)."""
SPECIAL = 16
"""Tokens that a tokenizer may add to a text, at most."""

Score = tuple[float, bool]
"""Log-probability of a token in nats, and whether it was the most likely one."""
Question = tuple[Any, list[int], list[int]]
"""Question: lm-eval's own key (for its cache), tokens of the context, and tokens of the answer to score."""


class Ends(NamedTuple):
    """The most tokens to write, the strings that end a text, and the way to choose tokens."""

    max_tokens: int
    stop: tuple[str, ...]
    temperature: float | None
    """Temperature of drawing; None where the likeliest token is taken."""


class TokenLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A model of lm-eval that asks a runtime for what lm-eval's own `HFLM` asks of transformers with its defaults.

    Tokens and stop strings are the same. Log-probabilities are float32's, HFLM's those of the model's dtype. As
    there, the beginning is cut off a question that is longer than the model reads, if its answers are given; one that
    leaves no room to write is an error.

    A runtime says `name`, `max_length`, `limit_from`, `end_text`, `eot_token_id`, `prefix_token_id`, `tok_encode`,
    `score_answers` and `write`.
    """

    name: str
    max_length: int
    """Number of tokens that the model reads, with those that it writes."""
    limit_from: str
    """Source of `max_length`: a file and its key, for messages."""
    end_text: str | None
    """Text of the end-of-sequence token; None where there is none, so that only stop strings and the length end an
    answer."""
    samples: bool = False
    """Whether the runtime can write by drawing tokens at a temperature."""

    def score_answers(self, questions: Sequence[Question]) -> list[list[Score]]:
        """Return the scores of each question's answer, token by token; contexts are not empty."""
        raise NotImplementedError

    def write(self, prompts: list[list[int]], ends: Ends) -> Iterable[str]:
        """Return what follows each prompt, greedily or as `ends` says."""
        raise NotImplementedError

    def tokens(self, request: Any) -> int:
        """Count what lm-eval's `request` takes of `max_length`, answer included; where the bytes show that it fits,
        they are counted instead: no tokenizer makes more tokens of a text, but for the special ones."""
        if request.request_type == "loglikelihood_rolling":
            return 0  # it is read in windows
        answer = answer_tokens(request)
        text = request.args[0] if answer else "".join(request.args[:2])
        rest = answer or -1  # a last token that is scored is not read
        most = len(text.encode()) + SPECIAL + rest
        return most if most <= self.max_length else len(self.tok_encode(text)) + rest

    def may_cut(self, request: Any) -> bool:
        """Tell whether the beginning of lm-eval's `request` may go unread: its answer is given, and is read whole."""
        if request.request_type != "loglikelihood":
            return False
        return len(self.tok_encode(request.args[1], add_special_tokens=False)) <= self.max_length

    def _loglikelihood_tokens(self, requests: Sequence[Question], **_: Any) -> list[tuple[float, bool]]:
        questions = []
        for asked, context, answer in requests:
            self._check_length(len(answer))
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

    def _check_length(self, tokens: int) -> None:
        """Refuse to cut what has to be read; `checks.check_prompts` names its task before."""
        if tokens > self.max_length:
            raise QuantgateError(f"a prompt takes {tokens} tokens, and the model reads {self.max_length}")

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
        """Return what follows each context.

        Raises:
            QuantgateError: a task wants samples, and the runtime takes none here; a prompt leaves no room to answer.
        """
        from lm_eval.models.utils import handle_stop_sequences, postprocess_generated_text

        groups: dict[Ends, list[int]] = {}
        for number, request in enumerate(requests):
            settings = _normalized(request.args[1])
            if settings["do_sample"] and not self.samples:
                raise QuantgateError(f"task {request.task_name} samples; {self.name} here only generates greedily")
            stop = tuple(handle_stop_sequences(settings["until"], eos=self.end_text))
            temperature = settings["temperature"] if settings["do_sample"] else None
            groups.setdefault(Ends(settings["max_gen_toks"], stop, temperature), []).append(number)
        texts = [""] * len(requests)
        for ends, members in groups.items():
            prompts = [self.tok_encode(requests[number].args[0]) for number in members]
            self._check_length(max(map(len, prompts)) + ends.max_tokens)
            for number, text in zip(members, self.write(prompts, ends), strict=True):
                texts[number] = postprocess_generated_text(text, list(ends.stop), None)
                self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
        return texts


def answer_tokens(request: Any) -> int:
    """Return how many tokens may be written to answer lm-eval's `request`; 0 where its answers are given."""
    return int(_normalized(request.args[1])["max_gen_toks"]) if request.request_type == "generate_until" else 0


def _normalized(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a task's settings for writing, by the names that lm-eval gives them in the end."""
    from lm_eval.models.utils import normalize_gen_kwargs

    normalized: dict[str, Any] = normalize_gen_kwargs(settings, MOST_WRITTEN)
    return normalized


def batches(items: Sequence[Any], name: str, size: int = BATCH) -> Iterator[list[Any]]:
    """Yield `items`, `size` at a time, with a progress bar."""
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

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # of transformers, of tokenizers, of sentencepiece: they share no class
            what = f"transformers loads no tokenizer and configuration from it: {brief(error)}"
            raise bad_input(folder, what, "copy the tokenizer's files beside the weights; code is not run") from None
        most: int = resolve_max_length(config, self.tokenizer)
        self.max_length = min(most, positions(config.get_text_config(decoder=True)) or most)  # lm-eval asks fewer keys
        self.limit_from = f"{folder}/{_limit_from(config, self.tokenizer)}"
        own, model = self.tokenizer, functools.partial(_stated, folder, len(self.tokenizer))
        self._last = _given(own.eos_token_id, *model("eos_token_id"))
        self._first = _given(own.bos_token_id, own.eos_token_id, *model("bos_token_id"), self._last, own.pad_token_id)
        self.end_text = None if self._last is None else str(own.decode(self._last)) or None

    @property
    def eot_token_id(self) -> int | None:
        """Id of the token that ends a text: the tokenizer's, else the model's; None where neither says one."""
        return self._last

    @property
    def prefix_token_id(self) -> int:
        """Id of the token that stands before an answer without context: that of the beginning, else of the end, else
        padding, else a line break."""
        return self.tokenizer.encode("\n", add_special_tokens=False)[-1] if self._first is None else self._first

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens of `string`, with the special ones that the tokenizer adds unless it starts with the
        first."""
        begun = self._first is not None and string.startswith(self.tokenizer.decode(self._first))
        if add_special_tokens is None and begun:
            add_special_tokens = False
        special: dict[str, Any] = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **special))


def _given(*tokens: int | None) -> int | None:
    """Return the first of `tokens` that there is."""
    return next((int(token) for token in tokens if token is not None), None)


def _stated(folder: Path, known: int, key: str) -> list[int]:
    """Return the token or tokens that the model's own files give for `key`, of those that its tokenizer has."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        with contextlib.suppress(OSError):
            value = json.loads((folder / name).read_text(encoding="utf-8")).get(key)
            found += value if isinstance(value, list) else [value]
    return [token for token in found if isinstance(token, int) and 0 <= token < known]


def _limit_from(config: Any, tokenizer: Any) -> str:
    """Return the file and key that limit the tokens a model reads, in the order of lm-eval's `resolve_max_length`."""
    from lm_eval.models.utils import TOKENIZER_INFINITY

    own = getattr(config, "text_config", None) or config
    for key in ("n_positions", "max_position_embeddings", "n_ctx", "max_target_positions"):
        if getattr(own, key, None) is not None:
            return f"config.json: {key}"
    if tokenizer.model_max_length != TOKENIZER_INFINITY:
        return "tokenizer_config.json: model_max_length"
    return "tokenizer_config.json: no model_max_length, so it is lm-eval's default"
