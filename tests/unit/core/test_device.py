"""What models compute in: chosen, recorded, part of every key, and never mixed."""

import json
from pathlib import Path

import pytest

from pipelines.checkpoint.dtypes import choose_dtype, fits, model_bytes, own_dtype
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core.device import Dtype
from pipelines.core.errors import BadInput
from pipelines.evaluation.stage import evaluate
from pipelines.gating.gate import gate
from pipelines.planning.stage import make_plan
from pipelines.recipe.suite import Suite, SuiteTask
from tests.conftest import PLAIN, Cli, edit_json

FEW = Suite(version=1, name="few", summary="", tasks=(SuiteTask(task="copa", limit=8),))
GIANT = 1 << 50
"""Elements of a tensor that no machine's memory holds."""


def giant(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, as its headers would tell if its first tensor were huge."""
    first, *others = checkpoint.tensors
    huge = first.model_copy(update={"shape": (GIANT,)})
    return checkpoint.model_copy(update={"tensors": (huge, *others)})


@pytest.mark.parametrize(
    ("wanted", "device", "chosen"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "cuda", "bfloat16"),
        ("bfloat16", "cpu", "bfloat16"),
        ("float16", "cpu", "float16"),
        ("float32", "cuda", "float32"),
    ],
)
def test_a_cpu_computes_in_float32_and_a_gpu_as_the_model_says(
    wanted: Dtype, device: str, chosen: str, tiny: Path
) -> None:
    assert choose_dtype(wanted, device, read_checkpoint(tiny)) == chosen


def test_what_does_not_fit_in_float32_computes_in_its_own_type(tiny: Path) -> None:
    large = giant(read_checkpoint(tiny))
    assert not fits(large, "float32")
    assert choose_dtype("auto", "cpu", large) == "bfloat16"
    assert model_bytes(large, "float32") == 2 * model_bytes(large, "bfloat16")


@pytest.mark.parametrize(
    ("config", "own"),
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "torch.float32", "torch_dtype": "bfloat16"}, "float32"),
        ({"dtype": None, "text_config": {"dtype": "float16"}}, "float16"),
        ({"dtype": None}, "bfloat16"),  # as most weights are stored
        ({"dtype": "float64"}, "bfloat16"),
    ],
)
def test_the_own_type_is_what_the_config_says_or_the_weights_are(
    config: dict[str, object], own: str, tiny_copy: Path
) -> None:
    edit_json(tiny_copy / "config.json", **{"dtype": None, **config})
    assert own_dtype(read_checkpoint(tiny_copy)) == own


def test_results_of_another_type_are_another_result_and_are_not_compared(tiny: Path) -> None:
    wide, narrow = evaluate(tiny, FEW, "cpu"), evaluate(tiny, FEW, "cpu", dtype="bfloat16")
    assert (wide.dtype, narrow.dtype) == ("float32", "bfloat16")
    assert not any(block.reused for block in narrow.results)
    assert all(block.reused for block in evaluate(tiny, FEW, "cpu", dtype="float32").results)
    with pytest.raises(BadInput, match="differ in their dtype: float32 and bfloat16"):
        gate(wide, narrow)


def test_a_type_that_is_none_is_refused(tiny: Path) -> None:
    with pytest.raises(BadInput, match="--dtype int8: is not a type to compute in"):
        evaluate(tiny, FEW, "cpu", dtype="int8")  # type: ignore[arg-type]


def test_a_calibrated_artifact_depends_on_it_and_a_data_free_one_does_not(tiny: Path) -> None:
    from pipelines import load_recipe, quantize

    data_free = ["quantize.ignore=[lm_head]"]
    first, second = (quantize(make_plan(load_recipe("fp8", data_free), tiny, dtype=d)) for d in ("float32", "bfloat16"))
    assert (first.key, second.reused) == (second.key, True)
    text = [*data_free, "calibrate.samples=2", "calibrate.seq_len=32"]
    third, fourth = (
        quantize(make_plan(load_recipe("fp8-static", text), tiny, dtype=d)) for d in ("float32", "bfloat16")
    )
    assert third.key != fourth.key
    assert [part.dtype for part in read_checkpoint(third.checkpoint).tensors] == [
        part.dtype for part in read_checkpoint(fourth.checkpoint).tensors
    ], "what is stored stays the same"


def test_the_plan_and_the_evaluation_say_it(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    suite = tmp_path / "few.yaml"
    suite.write_text("{version: 1, name: few, summary: x, tasks: [{task: copa, limit: 8}]}")
    done = cli("evaluate", tiny, "--suite", suite, "--device", "cpu", "--json")
    assert json.loads(done.stdout)["dtype"] == "float32", done.stderr
    assert "models compute in float32\n" in cli("plan", "fp8", "--model", tiny, *PLAIN, "--device", "cpu").stdout
    told = json.loads(cli("plan", "fp8", "--model", tiny, *PLAIN, "--dtype", "float16", "--json").stdout)
    assert told["dtype"] == "float16"
