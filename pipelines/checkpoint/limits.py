"""What a model can read: how many tokens at once, and which.

A tokenizer may know tokens that the embedding has no row for: those added for a chat template that was never trained.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipelines.checkpoint.architecture import load_config
from pipelines.checkpoint.headers import Checkpoint
from pipelines.core.errors import bad_input

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_target_positions")
"""Names that configs have for the number of positions."""
AFTER_PADDING = (
    "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Model types that count positions from the padding token's number on, as fairseq's RoBERTa does."""


def language_config(checkpoint: Checkpoint) -> Any:
    """Return what transformers makes of the checkpoint's config: of the language model, where that is a part.

    Raises:
        BadInput: it makes nothing of it.
    """
    return load_config(checkpoint.folder).get_text_config(decoder=True)


def positions(config: Any) -> int | None:
    """Return how many tokens a model reads at once, by its language model's config; None if that sets no limit."""
    found = (getattr(config, name, None) for name in POSITIONS)
    count = next((count for count in found if isinstance(count, int) and count > 0), None)
    if count and getattr(config, "model_type", None) in AFTER_PADDING:
        return max(1, count - (getattr(config, "pad_token_id", None) or 0) - 1)
    return count


def known_token(config: Any, *tokens: int | None) -> int | None:
    """Return the first of `tokens` that the embedding has a row for, if there is one."""
    rows = _rows(config)
    return next((token for token in tokens if token is not None and (rows is None or token < rows)), None)


def check_tokens(folder: Path, tokenizer: Any, ids: Iterable[int], config: Any) -> None:
    """Raise `BadInput` if the model in `folder` has no embedding for one of the tokens `ids` of a text."""
    rows, last = _rows(config), max(ids, default=-1)
    if rows is None or last < rows:
        return
    what = f"gives a text token {last}, {tokenizer.convert_ids_to_tokens(last)!r}, and the model embeds {rows} tokens"
    remedy = "copy the tokenizer here that the weights were trained with, or enlarge the model's embedding"
    file = folder / "tokenizer.json"
    raise bad_input(file if file.is_file() else folder, what, remedy)


def _rows(config: Any) -> int | None:
    """Return the rows of the embedding."""
    rows = getattr(config, "vocab_size", None)
    return rows if isinstance(rows, int) else None
