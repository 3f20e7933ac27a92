"""The settings by which models write here: ours, not those that a checkpoint recommends to chat programs.

Those may ask for beams, for several answers, or for code that transformers fetches; a checkpoint in which they do not
work together can be quantized all the same.
"""

from pathlib import Path
from typing import Any

from pipelines.core.errors import bad_input, brief

FILE = "generation_config.json"
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "repetition_penalty", "no_repeat_ngram_size")
"""Names of the settings that stay: the tokens that begin and end a text, and those that keep it from going in circles.
lm-eval's `HFLM` goes by these, too."""


def check_generation(folder: Path) -> None:
    """Raise `BadInput` if transformers cannot read the generation config of the checkpoint in `folder`.

    It says nothing of one that is no JSON, and goes on without; the artifact would get it, too.
    """
    from transformers import GenerationConfig

    if not (folder / FILE).is_file():
        return
    try:
        GenerationConfig.from_pretrained(folder)
    except Exception as error:  # an OSError, a ValueError, and a TypeError where it is no object
        what = f"transformers cannot read it: {brief(error)}"
        raise bad_input(folder / FILE, what, "mend it, or remove it: config.json takes its place") from None


def use_own_settings(model: Any) -> None:
    """Let `model.generate` do what its caller says: of the checkpoint's own settings, only `KEPT` stay."""
    from transformers import GenerationConfig

    recommended = model.generation_config
    model.generation_config = GenerationConfig(**{name: getattr(recommended, name, None) for name in KEPT})


def generate(model: Any, ids: Any, mask: Any, **settings: Any) -> Any:
    """Return what `model.generate` makes of `ids`: without a cache, where its class fails with the one that it gets, as
    that of a Jamba whose layers are all recurrent does."""
    import torch

    try:
        return model.generate(ids, attention_mask=mask, **settings)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError):  # each class says it in its own way, and fails again if it was not that
        return model.generate(ids, attention_mask=mask, use_cache=False, **settings)
