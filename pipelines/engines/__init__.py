"""Engines turn a plan into weight files. Each is one module with one function:

    quantize(plan, tokens, folder) -> Written

`plan` says what becomes of each module, `tokens` is the calibration set (None for a data-free method), `folder` is
empty. The engine writes safetensors files (and an index when there is more than one) and nothing else; config,
tokenizer and the rest are the same for every engine and `pipelines.quantize` writes them.
"""

from typing import Any

from pydantic import Field

from pipelines.schema import Frozen


class Written(Frozen):
    """What an engine has to say about the files it wrote."""

    quantization_config: dict[str, Any]
    """For `config.json`, as compressed-tensors reads it."""
    rescaled: dict[str, tuple[str, ...]] = Field(default={})
    """Norm module → the linear modules whose input columns absorbed its change (SmoothQuant)."""
