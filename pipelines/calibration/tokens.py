"""Token ids of calibration text, with the manifest of where they came from, as data and as a file."""

from pathlib import Path
from typing import Any

from pipelines.core.cache import Result, digest


class CalibrationTokens(Result):
    """Token ids, and the manifest of where they came from."""

    set: str
    source: dict[str, Any]
    revision: str
    """Commit of the hub, version of the package, or digest of the files or of the model that wrote the text."""
    rows: tuple[str, ...]
    """Ids of the rows that were used, in order; none of text that the model wrote."""
    samples: int
    tokens: int
    digest: str
    """Digest of the token ids."""

    @property
    def file(self) -> Path:
        """Return the safetensors file: `input_ids` int32 (tokens,), `lengths` int32 (samples,)."""
        return self.folder / "tokens.safetensors"


def read_tokens(tokens: CalibrationTokens) -> list[list[int]]:
    """Return the samples of finished calibration text, as lists of token ids."""
    from safetensors.numpy import load_file

    stored = load_file(tokens.file)
    ids, start, samples = stored["input_ids"].tolist(), 0, []
    for length in stored["lengths"].tolist():
        samples.append(ids[start : start + length])
        start += length
    return samples


def save_tokens(samples: list[list[int]], to: Path) -> dict[str, Any]:
    """Write the samples as safetensors; return the fields of `CalibrationTokens` that count and digest them."""
    import numpy as np
    from safetensors.numpy import save_file

    ids = np.array([token for sample in samples for token in sample], dtype=np.int32)
    save_file({"input_ids": ids, "lengths": np.array([len(sample) for sample in samples], dtype=np.int32)}, to)
    return {"samples": len(samples), "tokens": len(ids), "digest": digest([digest(ids.tolist()), len(samples)])}
