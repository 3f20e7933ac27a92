"""An artifact as a server sees it: its files alone say how its weights are stored, and what it can read."""

import json
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path
from typing import Any

from pipelines.checkpoint.gguf_file import find_gguf, read_gguf
from pipelines.core.errors import bad_input
from pipelines.core.strict_yaml import Frozen
from pipelines.formats.packings import form_of
from pipelines.formats.schemes import SchemeName, scheme_of
from pipelines.serving.loads import Stored

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
"""Names that configs have for the number of positions."""


class Served(Frozen):
    """The facts about an artifact that its configs depend on."""

    model: Path
    """Folder that runtimes load, or the GGUF."""
    stored: Stored
    formats: tuple[tuple[SchemeName, int | None], ...]
    """Schemes of its modules, with the sizes of groups or the sides of blocks; empty for a GGUF."""
    positions: int | None
    """Number of tokens that the model was made to read at once; None where it sets no limit."""
    cached_in_fp8: bool = False
    """Whether scales for keys and values in FP8 are stored with it: then the gate judged it with these."""

    @property
    def name(self) -> str:
        """Name for a person."""
        return self.model.stem if self.stored == "gguf" else self.model.name


def read_served(place: Path) -> Served:
    """Return what a server sees of the artifact in `place`, a folder or a GGUF.

    Raises:
        BadInput: it is no artifact, is not quantized, or is quantized in a way that is not known here.
    """
    if file := find_gguf(place):
        return _read_gguf(file)
    file = place / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        described = config["quantization_config"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        remedy = "give a folder that `quantgate quantize` printed, or that an artifact was published to"
        raise bad_input(place, "is no quantized checkpoint, and no GGUF", remedy) from None
    try:
        stored, formats = _formats(described)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"is quantized in a way that is not known here: {error}"
        raise bad_input(file, what, "give an artifact that quantgate made") from None
    return Served(
        model=place.absolute(),
        stored=stored,
        formats=formats,
        positions=_positions(config),
        cached_in_fp8=bool(described.get("kv_cache_scheme")),
    )


def _read_gguf(file: Path) -> Served:
    fields = read_gguf(file).fields
    architecture = fields["general.architecture"].contents() if "general.architecture" in fields else ""
    found = fields.get(f"{architecture}.context_length")
    positions = _first_count([found.contents()]) if found else None
    return Served(model=file.absolute(), stored="gguf", formats=(), positions=positions)


def _formats(described: Any) -> tuple[Stored, tuple[tuple[SchemeName, int | None], ...]]:
    """Return how a `quantization_config` says that weights are stored, and in which schemes.

    Raises:
        ValueError: it is of a kind that is not known here.
    """
    if form := form_of(described):
        return form.packing, ((form.scheme, form.group_size),)
    if described.get("quant_method") != "compressed-tensors":
        raise ValueError(f"quant_method {described.get('quant_method')}")
    return "compressed-tensors", tuple(scheme_of(group) for group in described["config_groups"].values())


def _positions(config: dict[str, Any]) -> int | None:
    """Return how many tokens a model reads at once, by its `config.json`; None if that sets no limit."""
    places = (place for place in (config, config.get("text_config")) if isinstance(place, dict))
    return _first_count(place.get(name) for place in places for name in POSITIONS)


def _first_count(found: Iterable[Any]) -> int | None:
    """Return the first that is a whole number above 0; None if none is."""
    return next((int(count) for count in found if isinstance(count, Integral) and int(count) > 0), None)
