"""How far an artifact is from its source on text, where models say the unusual."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.core.errors import QuantgateError
from pipelines.planning.stage import make_plan
from pipelines.quantization.stage import quantize
from pipelines.runtimes.distance import Distance, measure_distance, write_logprobs
from pipelines.runtimes.loading import load_for_inference
from pipelines.verification.stage import verify
from tests.helpers.families import Make, make

assert make  # a fixture
TEXT = [[*range(4, 36)], [*range(40, 72)]]


def with_bias(model: Path, folder: Path, value: float) -> Path:
    """Write `model` into `folder` with a bias of its head that is `value` for two tokens."""
    folder.mkdir()
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.bias"][[3, 200]] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    return folder


def distance(source: Path, artifact: Path, scratch: Path) -> Distance:
    write_logprobs(load_for_inference(source, "cpu", "float32"), TEXT, scratch / "logprobs")
    return measure_distance(load_for_inference(artifact, "cpu", "float32"), TEXT, scratch / "logprobs")


@pytest.mark.parametrize("masked", [-1e5, -1e30, -math.inf])
def test_tokens_that_a_model_never_writes_add_nothing(make: Make, tmp_path: Path, masked: float) -> None:
    """As models mask the rows that pad their vocabulary; float16 holds no such log-probability."""
    model = make("phi")
    source = with_bias(model, tmp_path / "source", masked)
    same = distance(source, source, tmp_path)
    assert 0 <= same.divergence < 1e-3 and math.isfinite(same.divergence_error) and same.same_top > 0.9
    other = distance(source, with_bias(model, tmp_path / "other", 5.0), tmp_path)
    assert other.divergence > 0.01
    assert all(value is not None for value in json.loads(other.model_dump_json()).values()), "JSON has no NaN"


def test_an_artifact_whose_logits_are_no_numbers_is_an_error(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("phi")
    found = distance(model, with_bias(model, tmp_path / "broken", math.nan), tmp_path)
    assert math.isnan(found.divergence), "it is not taken for none"
    monkeypatch.setattr("pipelines.verification.checkpoint.measure_distance", lambda *_: found)
    with pytest.raises(QuantgateError, match="what it computes on plain text is not a number"):
        verify(quantize(make_plan("fp8", model)), "cpu")


def test_a_loss_beyond_every_float_is_infinite_and_no_traceback(make: Make, tmp_path: Path) -> None:
    model = make("phi")
    certain = with_bias(model, tmp_path / "certain", 2000.0)
    found = distance(certain, certain, tmp_path)
    assert found.perplexity_before == math.inf and torch.isfinite(torch.tensor(found.divergence))
