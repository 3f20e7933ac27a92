"""lm-eval's model in transformers: what several questions begin with is computed once, and logits only where they are
asked for.

Plain `lm_eval --model hf` reads a question once for each of its choices, pads them, and takes the logarithm of the
softmax over the vocabulary at every position. The scores here are the same, but for the order of sums.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checkpoint.limits import check_tokens, known_token
from pipelines.core import progress
from pipelines.core.device import ComputeDtype
from pipelines.core.errors import QuantgateError
from pipelines.runtimes.amounts import EVALUATION_LOGITS_BYTES
from pipelines.runtimes.generation import generate
from pipelines.runtimes.lm_eval import Ends, HubLM, Question, Score, batches
from pipelines.runtimes.loading import load_for_inference, unrounded
from pipelines.runtimes.prefixes import Ask, Row, Tokens, lay_out, shared

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Number of tokens in one forward pass, padding included. More is no faster; where memory is short, it is halved until
that suffices."""
LOGITS_BYTES = {"cpu": EVALUATION_LOGITS_BYTES, "cuda": 4 << 30}
"""Bytes of the logits of a forward pass, in float32."""
BUSY = {"cpu": 0, "cuda": 8192}
"""Number of tokens in a forward pass below which it takes as long with fewer: a GPU waits for Python then."""
FEWEST = 16
"""Fewest tokens that all sequences must begin with to be read before them, and not in each row."""
LONGEST = 128
"""Most tokens in a row of several sequences: longer ones waste less on padding, more on what a token does not see."""
EAGER = 320
"""Most tokens of a row for which unfused attention is the faster on a CPU."""
PADDED = 0.8
"""Length of the shortest row of a batch, as a share of its longest: padding is computed, too."""
SOFTMAX_ROWS = 64
"""Number of rows of logits turned to probabilities at once on a CPU: they stay in its cache."""
WRITE_BATCH = 16
"""Number of prompts that are continued at once."""
ALIKE = 0.05
"""Largest mean difference, in nats, that sharing may make in `shares_prefixes`. The order of sums makes a tenth of it
in bfloat16 and 1e-5 in float32; a model that does not look at the mask, or at positions, a multiple. Activations are
not rounded to 8 bits while it is tried: that alone makes 0.1 of a difference in the last bit, and says nothing of the
mask.
"""
OTHER_ATTENTION = ("sliding_window", "attention_chunk_size", "local_attention_window")
"""Settings of models whose layers do not see all that comes before."""


class TransformersLM(HubLM):
    """The checkpoint in a folder, on a device."""

    name = "transformers"
    samples = True

    def __init__(self, folder: Path, device: str, dtype: ComputeDtype | None = None) -> None:
        super().__init__(folder)
        self._folder = folder
        self._model = load_for_inference(folder, device, dtype)
        self._config = self._model.config.get_text_config(decoder=True)
        self._where = device
        self._kind = device.partition(":")[0]
        self._budget = BATCH_TOKENS[self._kind]
        self._shares = shares_prefixes(self._model, self.tokenizer.encode(PROBE)[: self.max_length])

    def score_answers(self, questions: Sequence[Question]) -> list[list[Score]]:
        first: dict[Tokens, int] = {}
        for _, context, answer in questions:
            sequence = tuple(context + answer)
            first[sequence] = min(len(context), first.get(sequence, len(context)))
        sequences = sorted(first)
        self._check(sequences)
        scores = self._score(sequences, [first[sequence] for sequence in sequences])
        number = {sequence: index for index, sequence in enumerate(sequences)}
        return [scores[number[tuple(context + answer)]][-len(answer) :] for _, context, answer in questions]

    def write(self, prompts: list[list[int]], ends: Ends) -> Iterable[str]:
        import torch

        self._check(prompts)
        pad = known_token(self._config, self.eot_token_id) or 0  # which the mask hides
        settings: dict[str, Any] = {"max_new_tokens": ends.max_tokens, "pad_token_id": pad}
        settings |= {"stop_strings": list(ends.stop), "tokenizer": self.tokenizer} if ends.stop else {}
        settings |= {"do_sample": ends.temperature is not None, "temperature": ends.temperature, "top_p": None}
        with torch.inference_mode():
            for batch in batches(prompts, self.name, WRITE_BATCH):
                longest = max(map(len, batch))
                ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in batch])
                mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
                output = generate(self._model, ids.to(self._where), mask.to(self._where), **settings)
                yield from self.tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)

    def _check(self, texts: Sequence[Sequence[int]]) -> None:
        """Raise `BadInput` if the model does not know a token of `texts`."""
        check_tokens(self._folder, self.tokenizer, itertools.chain.from_iterable(texts), self._config)

    def _score(self, sequences: list[Tokens], first: list[int]) -> list[list[Score]]:
        """Return the scores of each of the sorted `sequences`, from its `first` token on."""
        import torch

        common = min(min(first) - 1, shared(sequences[0], sequences[-1]))
        common = common if self._shares and common >= FEWEST and len(sequences) > 1 else 0
        rows = lay_out(sequences, first, common, LONGEST if self._shares else None)
        rows.sort(key=lambda row: -len(row.tokens))
        scores: list[list[Score]] = [[(0.0, False)] * len(sequence) for sequence in sequences]
        with torch.inference_mode():
            past = _past(self._model, sequences[0][:common]) if common else None
            for ask, score in self._read(rows, sequences, past):
                scores[ask.sequence][ask.position] = score
        return scores

    def _read(
        self,
        rows: list[Row],
        sequences: list[Tokens],
        past: "list[tuple[torch.Tensor, torch.Tensor]] | None",
    ) -> Iterator[tuple[Ask, Score]]:
        """Yield each thing that `rows`, the longest first, ask of the `sequences`, with its score; in batches.

        Raises:
            QuantgateError: a single row does not fit the GPU's memory.
        """
        import torch

        vocabulary = self._model.get_output_embeddings().weight.shape[0]
        most_asks = max(1, LOGITS_BYTES[self._kind] // (4 * vocabulary))
        left = list(rows)
        with progress.bar(sum(len(row.tokens) for row in rows), self.name, "token") as bar:
            while left:
                count = rows_that_fit(left, self._budget, most_asks, BUSY[self._kind])
                asks = [ask for row in left[:count] for ask in row.asks]
                wanted = [sequences[ask.sequence][ask.position] for ask in asks]
                try:
                    scores = _scores(forward(self._model, left[:count], past), wanted)
                except torch.OutOfMemoryError:
                    if count == 1:
                        raise QuantgateError("the GPU's memory does not hold the longest question") from None
                    self._budget //= 2
                    continue
                yield from zip(asks, scores, strict=True)
                bar.update(sum(len(row.tokens) for row in left[:count]))
                left = left[count:]


def _past(model: Any, tokens: Sequence[int]) -> "list[tuple[torch.Tensor, torch.Tensor]]":
    """Return keys and values, layer by layer, of what all rows begin with; computed once."""
    import torch

    ids = torch.tensor([tokens], device=model.device)
    cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
    return [(layer.keys, layer.values) for layer in cache.layers]


def rows_that_fit(rows: Sequence[Row], tokens: int, asks: int, busy: int) -> int:
    """Return how many of the first of `rows`, the longest of which comes first, go in one forward pass; one at least.

    That is up to `tokens` with the padding, and up to `asks`; and from `busy` tokens on with little padding only.
    """
    longest = len(rows[0].tokens)
    most = max(1, tokens // longest)
    total = 0
    for count, row in enumerate(rows[:most]):
        total += len(row.asks)
        padded = len(row.tokens) < PADDED * longest and count * longest >= busy
        if count and (total > asks or padded):
            return count
    return min(most, len(rows))


def forward(
    model: Any, rows: Sequence[Row], past: "list[tuple[torch.Tensor, torch.Tensor]] | None" = None
) -> "torch.Tensor":
    """Return the logits (asks, vocabulary) that `rows` ask for, after `past`: keys and values, each (1, heads, tokens,
    size), of what all of them begin with.

    Rows are padded on the right. Without branches and past this is a plain causal pass, right for any model.
    """
    import torch

    device = model.device
    longest = max(len(row.tokens) for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row.tokens)] = torch.tensor(row.tokens)
    asked = torch.tensor([number * longest + ask.node for number, row in enumerate(rows) for ask in row.asks])
    common = past[0][0].shape[2] if past else 0
    extra: dict[str, Any] = {"use_cache": False}
    if past:
        from transformers import DynamicCache

        expanded = [tuple(part.expand(len(rows), -1, -1, -1) for part in layer) for layer in past]
        extra = {"use_cache": True, "past_key_values": DynamicCache(expanded)}
    if past or any(row.branches for row in rows):
        positions = torch.zeros_like(ids)
        for line, row in zip(positions, rows, strict=True):
            line[: len(row.depths)] = torch.tensor(row.depths) + common
        extra["position_ids"] = positions.to(device)
        extra["attention_mask"] = attention_mask(rows, longest, common, model.dtype, device)
    _choose_attention(model, longest + common)
    with _reading(model.get_output_embeddings(), asked.to(device)):
        logits: torch.Tensor = model(ids.to(device), **extra).logits[0]
    return logits


def attention_mask(
    rows: Sequence[Row], longest: int, common: int, dtype: "torch.dtype", device: "torch.device"
) -> "torch.Tensor":
    """Return (rows, 1, tokens, common + tokens): 0 where a token sees another, its ancestors and itself; else the
    smallest number of `dtype`."""
    import torch

    ends = torch.arange(longest).repeat(len(rows), 1)  # padding sees itself: a softmax needs one
    for line, row in zip(ends, rows, strict=True):
        line[: len(row.parents)] = torch.tensor(row.ends)
    nodes = torch.arange(longest, device=device)
    sees = (nodes <= nodes[:, None]) & (nodes[:, None] <= ends.to(device)[:, None])  # between an ancestor and its end
    hidden = torch.nn.functional.pad(~sees, (common, 0))
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]


def _choose_attention(model: Any, tokens: int) -> None:
    """Choose of transformers' two that give the same the faster for rows of so many `tokens`: on a CPU, for short ones,
    plain matrix products are twice as fast as the fused kernel."""
    now = model.config._attn_implementation
    wanted = "eager" if model.device.type == "cpu" and tokens <= EAGER else "sdpa"
    if now in ("eager", "sdpa") and now != wanted:
        model.set_attn_implementation(wanted)


@contextlib.contextmanager
def _reading(head: Any, asked: "torch.Tensor") -> "Iterator[None]":
    """Hand `head`, which makes logits of hidden states (rows, tokens, size), those at the places `asked` only: as one
    row, so that whatever the model does to logits after it is done to these."""

    def pick(_: Any, inputs: "tuple[torch.Tensor, ...]") -> "tuple[torch.Tensor, ...]":
        return inputs[0].flatten(0, 1)[asked][None], *inputs[1:]

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def _scores(logits: Any, tokens: Sequence[int]) -> list[Score]:
    """Return the log-probability of each token, and whether it is the likeliest, by logits (tokens, vocabulary)."""
    import torch

    wanted: Any = torch.tensor(tokens, device=logits.device)[:, None]
    rows = SOFTMAX_ROWS if logits.device.type == "cpu" else len(tokens)
    scores: list[Score] = []
    for some, token in zip(logits.split(rows), wanted.split(rows), strict=True):
        wide = some.float()
        logprobs = (wide.gather(1, token) - wide.logsumexp(1, keepdim=True))[:, 0].tolist()
        scores += zip(logprobs, (wide.argmax(1) == token[:, 0]).tolist(), strict=True)
    return scores


PROBE = "The sun warms the surface of the sea, and some of the water becomes vapour and rises. High in the sky it cools"


def shares_prefixes(model: Any, tokens: list[int]) -> bool:
    """Tell whether the model's answer to rows that branch, and to rows after a common beginning, is that to plain ones.

    Its configuration says where it surely is not; where it is silent, `tokens` are tried.
    """
    import torch

    config = model.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    if any(kind != "full_attention" for kind in kinds):
        return False
    if any(getattr(config, name, None) for name in OTHER_ATTENTION) and getattr(config, "use_sliding_window", True):
        return False
    half = len(tokens) // 2
    pair = sorted([tuple(tokens), (*tokens[:half], *reversed(tokens[half:]))])
    try:
        with torch.inference_mode(), unrounded(model):
            plain = forward(model, lay_out(pair, [half, half]))
            branched = forward(model, lay_out(pair, [half, half], 0, LONGEST))
            after = forward(model, lay_out(pair, [half, half], half - 2, LONGEST), _past(model, tokens[: half - 2]))
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError):
        return False  # it takes no such mask, or keeps no keys and values
    wanted = [token for sequence in pair for token in sequence[half:]]
    ours, *others = ([logprob for logprob, _ in _scores(logits, wanted)] for logits in (plain, branched, after))
    return all(sum(abs(a - b) for a, b in zip(ours, other, strict=True)) < ALIKE * len(ours) for other in others)
