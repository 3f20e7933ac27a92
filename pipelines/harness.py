"""lm-eval's questions, answered by a runtime that scores token ids: vLLM and llama.cpp share it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM  # light: it loads neither torch nor transformers

from pipelines.errors import QuantgateError

BATCH = 64
"""Prompts in one request to a runtime; between two of them the progress bar moves."""

Score = tuple[float, bool]
"""A token's log-probability in nats, and whether it was the most likely one."""
Question = tuple[Any, list[int], list[int]]
"""What lm-eval asked (for its cache), the tokens of the context, and those of the answer to score."""


class TokenLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """What lm-eval's own `HFLM` asks of transformers with its defaults, asked of another runtime: the same tokens, the
    same truncation, the same stop strings. Log-probabilities are float32's, HFLM's those of the model's dtype.

    A runtime says `name`, `max_length`, `end_text`, `eot_token_id`, `prefix_token_id`, `tok_encode`, `score_answers`
    and `write`.
    """

    name: str
    max_length: int
    """Tokens."""
    end_text: str
    """Of the end-of-sequence token."""

    def score_answers(self, questions: Sequence[Question], quiet: bool) -> list[list[Score]]:
        """The scores of each question's answer, token by token; contexts are not empty."""
        raise NotImplementedError

    def write(self, prompts: list[list[int]], max_tokens: int, stop: tuple[str, ...], quiet: bool) -> Iterable[str]:
        """What follows each prompt, greedily, until an end token, one of `stop` or `max_tokens`."""
        raise NotImplementedError

    def _loglikelihood_tokens(
        self, requests: Sequence[Question], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        questions = []
        for asked, context, answer in requests:
            read = (context + answer)[-(self.max_length + 1) :]
            first = max(1, len(read) - len(answer))
            questions.append((asked, read[:first], read[first:]))
        results = []
        for (asked, _context, _answer), scores in zip(
            questions, self.score_answers(questions, disable_tqdm), strict=True
        ):
            result = sum(logprob for logprob, _ in scores), all(likeliest for _, likeliest in scores)
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, result)
            results.append(result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((number, make_disjoint_window(window)))
        scored = self._loglikelihood_tokens([(None, *window) for _, window in windows], disable_tqdm)
        results = [0.0] * len(requests)
        for (number, _), (logprob, _) in zip(windows, scored, strict=True):
            results[number] += logprob
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, greedily.

        Raises:
            QuantgateError: a task wants samples.
        """
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for number, request in enumerate(requests):
            settings = normalize_gen_kwargs(request.args[1], 256)
            if settings["do_sample"]:
                raise QuantgateError(f"task {request.task_name} samples; {self.name} here only generates greedily")
            stop = tuple(handle_stop_sequences(settings["until"], eos=self.end_text))
            groups.setdefault((settings["max_gen_toks"], stop), []).append(number)
        texts = [""] * len(requests)
        for (max_tokens, stop), members in groups.items():
            prompts = [self.tok_encode(requests[n].args[0])[-(self.max_length - max_tokens) :] for n in members]
            for number, text in zip(members, self.write(prompts, max_tokens, stop, disable_tqdm), strict=True):
                texts[number] = postprocess_generated_text(text, list(stop), None)
                self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
        return texts


def batches(items: Sequence[Any], name: str, quiet: bool) -> Iterator[list[Any]]:
    """`items`, `BATCH` at a time, with a progress bar."""
    from tqdm import tqdm

    with tqdm(total=len(items), desc=name, unit="prompt", disable=quiet) as bar:
        for first in range(0, len(items), BATCH):
            batch = list(items[first : first + BATCH])
            yield batch
            bar.update(len(batch))
