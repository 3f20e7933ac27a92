"""The streaming engine: every data-free scheme in files that others read, and its memory against the model's size."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.checkpoint.headers import INDEX, Checkpoint, read_checkpoint, read_header
from pipelines.core.errors import QuantgateError
from pipelines.formats import nvfp4, rounding
from pipelines.formats.schemes import OWN_SCHEMES, SCHEMES, SchemeName, config_group
from pipelines.planning.plan import CheckpointPlan
from pipelines.quantization.engines import streaming
from pipelines.quantization.stage import quantize
from pipelines.recipe.methods import Rtn, Rule
from pipelines.recipe.recipe import Recipe
from pipelines.runtimes.loading import load_for_inference
from pipelines.verification import checkpoint as checkpoint_verification
from pipelines.verification.stage import verify
from tests.conftest import edit_json, make_tiny
from tests.helpers.checkpoints import split, write_checkpoint
from tests.helpers.paths import ROOT
from tests.helpers.plans import plan_checkpoint

DATA_FREE: list[SchemeName] = [name for name in OWN_SCHEMES if not SCHEMES[name].calibrated]
Tensors = dict[str, torch.Tensor]

pytestmark = pytest.mark.usefixtures("fakes")
every_scheme = pytest.mark.parametrize("name", DATA_FREE)
every_dtype = pytest.mark.parametrize("dtype", rounding.DTYPES)


def plan_for(
    name: SchemeName, model: Path | Checkpoint, group_size: int = 32, ignore: tuple[str, ...] = ()
) -> CheckpointPlan:
    chosen = Rtn(method="rtn", scheme=name, ignore=ignore, group_size=group_size if SCHEMES[name].resizable else None)
    return plan_checkpoint(Recipe(version=1, name="mine", summary="", quantize=chosen), model)


def stream(plan: CheckpointPlan, folder: Path) -> Tensors:
    """The tensors that the engine writes into `folder`."""
    folder.mkdir()
    streaming.quantize(plan, None, folder)
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def checkpoint(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def read(parts: Tensors, name: SchemeName, group_size: int | None) -> torch.Tensor:
    """A module's weight as compressed-tensors dequantizes it."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    reader = BaseCompressor.get_value_from_registry(SCHEMES[name].format)
    scheme = QuantizationScheme.model_validate(config_group(name, ["Linear"], group_size))
    weight: torch.Tensor = reader.decompress(parts, scheme)["weight"]
    return weight


def parts_of(module: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(f"{module}."): part for name, part in tensors.items() if name.startswith(f"{module}.")}


# Whole artifacts

Sources = Callable[[str], Path]


@pytest.fixture(scope="module")
def sources(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A tiny model of two layers as checkpoints come, told by words: its dtype, `untied`, `shards`."""
    made: dict[str, Path] = {}

    def source(words: str) -> Path:
        if words not in made:
            folder = made[words] = tmp_path_factory.mktemp("sources") / "model"
            make_tiny(folder, smollm2, num_hidden_layers=2, tie_word_embeddings="untied" not in words)
            dtype = rounding.DTYPES[words.partition(" ")[0]]
            tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            edit_json(folder / "config.json", dtype=str(dtype).removeprefix("torch."))
            if "shards" in words:
                split(folder)
        return made[words]

    return source


CLOSE = {"FP8": (29, 0.1), "INT8": (40, 0.03), "INT4": (18, 0.3), "FP4": (16, 0.4)}
"""Decibels that each layer keeps at least, and the distance of the logits, over their size."""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FP8_DYNAMIC", "BF16 tied"),
        ("FP8_DYNAMIC", "F16 untied shards"),
        ("FP8_BLOCK", "F32 untied"),
        ("NVFP4A16", "BF16 untied shards"),
        ("NVFP4A16", "F32 tied"),
        ("MXFP4", "BF16 untied"),
        ("MXFP4", "F16 tied shards"),
        ("W8A8", "BF16 tied shards"),
        ("W8A16", "F16 untied"),
        ("W4A16", "F32 tied shards"),
        ("W4A16_ASYM", "BF16 untied shards"),
        ("W4AFP8", "F16 tied"),
    ],
)
def test_artifacts_pass_verification_and_load_in_transformers(
    name: SchemeName, words: str, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    source = sources(words)
    for module in (streaming, checkpoint_verification):
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", 1 << 18)  # of the head, a part at a time
    artifact = quantize(plan_for(name, source))
    assert (artifact.checkpoint / INDEX).is_file() == ("shards" in words)
    decibels, far = CLOSE[SCHEMES[name].family.name]
    layers = verify(artifact, "cpu").layers
    assert len(layers) == 14 + ("untied" in words)
    assert min(layer.sqnr for layer in layers) > decibels

    dtype = torch.bfloat16 if SCHEMES[name].storage.read_as_bfloat16 else "auto"
    ids = torch.arange(100, 164).view(2, 32)
    with torch.inference_mode():
        after = AutoModelForCausalLM.from_pretrained(artifact.checkpoint, dtype=dtype)(ids).logits.float()
        before = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)(ids).logits.float()
    assert 0 < (after - before).norm() / before.norm() < far


def test_an_artifact_of_several_schemes_loads_in_transformers(sources: Sources) -> None:
    from transformers import AutoModelForCausalLM

    ignore = (r"re:.*\.0\.self_attn\.[qkv]_proj", "lm_head")
    rules = (
        Rule(match=("layer:0",), scheme="W8A16"),
        Rule(match=("down_proj",), scheme="NVFP4A16"),
        Rule(match=("o_proj",), scheme="FP8_DYNAMIC"),
    )
    chosen = Rtn(method="rtn", scheme="W4A16", group_size=32, rules=rules, ignore=ignore)
    artifact = quantize(
        plan_checkpoint(Recipe(version=1, name="mine", summary="", quantize=chosen), sources("BF16 tied"))
    )
    assert Counter(module.scheme for module in artifact.plan.modules) == {
        None: 3, "W8A16": 4, "W4A16": 5, "NVFP4A16": 1, "FP8_DYNAMIC": 1,
    }  # fmt: skip
    assert len(verify(artifact, "cpu").layers) == 11
    ids = torch.arange(100, 164).view(2, 32)
    with torch.inference_mode():
        ours = load_for_inference(artifact.checkpoint, "cpu")(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(artifact.checkpoint)(ids).logits
    assert torch.equal(ours, theirs)


def test_blocks_of_scales_need_not_divide_what_is_read_at_once(
    smollm2: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_tiny(tmp_path / "source", smollm2, hidden_size=192, intermediate_size=384, num_hidden_layers=1)
    for module in (streaming, checkpoint_verification):
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", 1)
    layers = verify(quantize(plan_for("FP8_BLOCK", source, group_size=96, ignore=("lm_head",))), "cpu").layers
    assert min(layer.sqnr for layer in layers) > CLOSE["FP8"][0]


@pytest.mark.parametrize("name", DATA_FREE)
def test_tensors_are_those_of_llmcompressor_and_as_close_to_the_source(
    name: SchemeName, tmp_path: Path, smollm2: Checkpoint
) -> None:
    """Against `model_free_ptq`: the same names, dtypes and shapes, and errors that are no larger."""
    from compressed_tensors.quantization import QuantizationScheme
    from llmcompressor import model_free_ptq

    source = make_tiny(tmp_path / "source", smollm2, hidden_size=128, num_hidden_layers=1, num_key_value_heads=4)
    plan = plan_for(name, source, group_size=128, ignore=("lm_head",))
    group_size = next(iter(plan.quantized.values())).group_size
    scheme: Any = QuantizationScheme.model_validate(config_group(name, ["Linear"], group_size))
    ignore = ["lm_head", "model.embed_tokens"]
    model_free_ptq(str(source), str(tmp_path / "theirs"), scheme=scheme, ignore=ignore, device="cpu")
    before, ours = load_file(source / "model.safetensors"), stream(plan, tmp_path / "ours")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert {key: (part.dtype, part.shape) for key, part in ours.items()} == {
        key: (part.dtype, part.shape) for key, part in theirs.items()
    }
    for key, tensor in before.items():
        module = key.removesuffix(".weight")
        if module not in plan.quantized:
            assert torch.equal(ours[key], tensor)
            continue
        error, reference = (
            (read(parts_of(module, tensors), name, group_size).double() - tensor.double()).norm()
            for tensors in (ours, theirs)
        )
        assert error <= 1.005 * reference  # their scales are rounded twice, which is at times a lucky shot


def test_kept_tensors_may_be_called_scales_and_be_anything(
    smollm2: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a model that has such; this one has not, and the plan is to take them."""
    for name in ("planning.stage.check_complete", "planning.stage.unreadable", "verification.reader.loading_problems"):
        monkeypatch.setattr(f"pipelines.{name}", lambda *_: ())
    source = make_tiny(tmp_path / "source", smollm2, num_hidden_layers=1)
    others = {"model.logit_scale": torch.tensor(-1.0), "model.layers.0.attn_scale": torch.zeros(4)}
    save_file(load_file(source / "model.safetensors") | others, source / "model.safetensors", metadata={"format": "pt"})
    assert verify(quantize(plan_for("W8A16", source)), "cpu").kept == 4 + len(others)


# Weight by weight


@every_scheme
@every_dtype
def test_blocks_of_rows_are_rounded_as_the_whole_weight(
    name: SchemeName, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 384 if SCHEMES[name].is_block else 300  # the last word of zero points is not full
    module = "model.layers.0.mlp.down_proj"
    torch.manual_seed(0)
    weight = (torch.randn(rows, 64).pow(3) / 30).to(rounding.DTYPES[dtype])
    plan = plan_for(name, checkpoint(tmp_path / "source", {f"{module}.weight": weight}))
    group_size = plan.quantized[module].group_size
    tensor_scale = nvfp4.tensor_scale(weight.abs().amax())
    scales = rounding.find_scales(weight, name, group_size, tensor_scale)
    expected = rounding.pack(rounding.quantize(weight, scales), scales, name, weight.dtype)
    if SCHEMES[name].format == "pack-quantized":
        expected["weight_shape"] = torch.tensor([rows, 64])
    for elements in (1, 1 << 21):
        monkeypatch.setattr(streaming, "BLOCK_ELEMENTS", elements)
        written = parts_of(module, stream(plan, tmp_path / f"{elements}"))
        assert written.keys() == expected.keys()
        for suffix, part in expected.items():
            assert torch.equal(written[suffix].view(torch.uint8), part.view(torch.uint8)), suffix


def test_modules_that_runtimes_fuse_share_the_scale_of_the_tensor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
             "mlp.up_proj", "mlp.down_proj", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")  # fmt: skip
    largest = {f"model.layers.0.{name}": float(size) for size, name in enumerate(names, 1)}
    weights = {f"{name}.weight": torch.rand(32, 32) * size for name, size in largest.items()}
    for name, size in largest.items():
        weights[f"{name}.weight"][5, 7] = -size
    written = stream(plan_for("NVFP4A16", checkpoint(tmp_path / "source", weights)), tmp_path / "ours")
    found = {name: round(2688 / float(written[f"{name}.weight_global_scale"]), 3) for name in largest}
    together = [3, 3, 3, 4, 6, 6, 7, 10, 9, 10]
    assert found == dict(zip(largest, together, strict=True))


def test_shards_stay_shards(tmp_path: Path, smollm2: Checkpoint) -> None:
    from transformers import AutoModelForCausalLM

    source = make_tiny(tmp_path / "source", smollm2)
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    plan = plan_checkpoint("fp8", tmp_path / "sharded")
    assert len(plan.checkpoint.weight_files) > 1
    stream(plan, tmp_path / "ours")
    written = {path.name for path in (tmp_path / "ours").iterdir()}
    assert written == {*plan.checkpoint.weight_files, INDEX}
    (tmp_path / "ours" / "config.json").write_text("{}")
    stored = read_checkpoint(tmp_path / "ours")
    assert stored.weight_bytes == plan.bytes_after


@every_scheme
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(name: SchemeName, value: float, tmp_path: Path) -> None:
    weights = {f"model.layers.0.self_attn.{which}_proj.weight": torch.rand(256, 64) for which in "kqv"}
    weights["model.layers.0.self_attn.q_proj.weight"][200, 5] = value
    plan = plan_for(name, checkpoint(tmp_path / "source", weights))
    with pytest.raises(QuantgateError, match=r"layers.0.self_attn.q_proj.weight holds NaN or infinite"):
        stream(plan, tmp_path / "ours")


LIMITED = """
import resource, sys
from pathlib import Path
import torch
import pipelines.planning.stage
from pipelines.formats import rounding
from pipelines.quantization.engines import streaming
from pipelines.planning.stage import make_plan
from pipelines.recipe.load import load_recipe
from tests.helpers.fakes import anatomy_of
pipelines.planning.stage.examine, pipelines.planning.stage.unreadable = anatomy_of, lambda _: ""
recipe = load_recipe("fp8", ["quantize.scheme=" + sys.argv[3], "quantize.ignore=[lm_head]"])
plan = make_plan(recipe, sys.argv[1])
warm = torch.ones(64, 64, dtype=torch.bfloat16)  # what torch allocates once
rounding.quantize(warm, rounding.find_scales(warm, "FP8_DYNAMIC", None))
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
limit = used + (192 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
streaming.quantize(plan, None, Path(sys.argv[2]))
print(plan.bytes_before)
"""


@pytest.mark.parametrize(("name", "layers", "parts"), [("FP8_DYNAMIC", 4, 2), ("NVFP4A16", 2, 3)])
def test_memory_does_not_grow_with_the_model(name: SchemeName, layers: int, parts: int, tmp_path: Path) -> None:
    """A checkpoint of 200 MB for each layer goes through 192 MB of memory in all, which the kernel enforces."""
    modules = [f"model.layers.{layer}.mlp.{which}_proj" for layer in range(layers) for which in ("gate", "up", "down")]
    source = write_checkpoint(tmp_path / "source", {f"{module}.weight": ("BF16", (8192, 4096)) for module in modules})
    (tmp_path / "ours").mkdir()
    command = [sys.executable, "-c", LIMITED, str(source), str(tmp_path / "ours"), name]
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=here)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == layers * (192 << 20)
    assert len(read_header(tmp_path / "ours" / "model.safetensors", "")) == parts * len(modules)
