"""What only a GPU shows (`make test-gpu`): its results against a CPU's, and its kernels against what is evaluated."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipelines.calibration.held_out import held_out
from pipelines.calibration.stage import calibrate
from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.tokenizer import load_tokenizer
from pipelines.core.errors import QuantgateError
from pipelines.formats import fp8, int8, nvfp4, rounding
from pipelines.formats.activations import input_rounder
from pipelines.formats.description import Scales
from pipelines.formats.schemes import OWN_SCHEMES, SCHEMES, SchemeName
from pipelines.quantization.engines import layerwise
from pipelines.quantization.methods import gptq
from pipelines.quantization.stage import write_companions
from pipelines.recipe.load import load_recipe
from pipelines.reporting.record import Manifest
from pipelines.runtimes.distance import chunks, measure_distance, write_logprobs
from pipelines.runtimes.loading import load_for_inference
from pipelines.runtimes.transformers_lm import TransformersLM
from tests.conftest import EASY, PLAIN, Cli
from tests.helpers.artifacts import IDS, ROUNDED, activations, artifact, linear
from tests.helpers.layers import DAMPENING, energy, inputs, moment, scales_of
from tests.helpers.plans import plan_checkpoint
from tests.helpers.questions import requests

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


def group_size(name: SchemeName) -> int | None:
    return SCHEMES[name].weights.group_size or (32 if SCHEMES[name].resizable else None)


@pytest.fixture
def leave() -> Iterator[Callable[[int], None]]:
    """Leaves this process as many bytes of the GPU's memory as it is given."""

    def limit(count: int) -> None:
        torch.cuda.empty_cache()
        left = torch.cuda.memory_reserved() + count
        torch.cuda.set_per_process_memory_fraction(left / torch.cuda.mem_get_info()[1])

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ROUNDED)
def test_activations_are_rounded_as_on_a_cpu_bit_for_bit(name: SchemeName, dtype: torch.dtype) -> None:
    """Not so in float32: where a CPU divides by a number, PyTorch multiplies by its reciprocal on a GPU."""
    module = linear(name, 4.0, dtype)
    ours, *further = input_rounder(module, module.quantization_scheme.input_activations)
    for kind, x in activations(dtype).items():
        assert torch.equal(ours(x.cuda(), *further).cpu(), ours(x, *further)), kind


@pytest.mark.parametrize("name", OWN_SCHEMES)
def test_weights_are_stored_as_on_a_cpu_bit_for_bit(name: SchemeName) -> None:
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))

    def stored(where: torch.Tensor) -> dict[str, torch.Tensor]:
        largest = nvfp4.tensor_scale(where.abs().amax())
        scales = rounding.find_scales(where, name, group_size(name), largest, torch.bfloat16)
        return rounding.pack(rounding.quantize(where, scales), scales, name, torch.bfloat16)

    here, there = stored(weight), stored(weight.cuda())
    assert here.keys() == there.keys()
    for suffix, part in here.items():
        assert torch.equal(part.view(torch.uint8), there[suffix].cpu().view(torch.uint8)), suffix


@pytest.mark.parametrize("name", ["W8A8", "FP8_DYNAMIC", "W4A16", "W4A16_ASYM", "NVFP4"])
def test_gptq_loses_no_more_than_on_a_cpu(name: SchemeName) -> None:
    weight, hessian = torch.randn(96, 256, generator=torch.Generator().manual_seed(1)), moment(inputs(256))

    def lost(device: str) -> float:
        moved = weight.to(device)
        scales = scales_of(moved, name, group_size(name))
        codes = gptq.round_weight(moved, scales, hessian.to(device), DAMPENING)
        return energy(rounding.dequantize(codes, scales).cpu() - weight, hessian)

    assert lost("cuda") == pytest.approx(lost("cpu"), rel=0.02)


@pytest.mark.parametrize("recipe", ["int8", "int4-gptq", "int4-awq", "nvfp4"])
def test_a_calibrated_artifact_is_as_near_to_its_source_as_a_cpus(
    recipe: str, smollm2: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the same one: the order of sums decides roundings, which decide others."""
    plan = plan_checkpoint(load_recipe(recipe, ["calibrate.samples=8", "calibrate.seq_len=256"]), smollm2)
    tokens = calibrate(plan)
    text = chunks(load_tokenizer(smollm2)(held_out(tokens, 32_000))["input_ids"], None)
    write_logprobs(load_for_inference(smollm2.folder, "cuda"), text, tmp_path / "logprobs")

    def divergence(name: str) -> float:
        folder = tmp_path / name
        folder.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: name == "gpu")
            write_companions(smollm2, layerwise.quantize(plan, tokens, folder), folder)
        return measure_distance(load_for_inference(folder, "cuda"), text, tmp_path / "logprobs").divergence

    assert divergence("gpu") == pytest.approx(divergence("cpu"), rel=0.1)


def test_hidden_states_that_do_not_fit_the_gpu_wait_in_memory(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifact is the same; the GPU's free memory is made little here."""
    plan = plan_checkpoint(load_recipe("int4-gptq", ["calibrate.samples=8", "calibrate.seq_len=64"]), tiny)
    made = []
    for name, free in (("there", torch.cuda.mem_get_info()[0]), ("here", 0)):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _=None, free=free: (free, free))
        layerwise.quantize(plan, calibrate(plan), folder)
        made.append((folder / "model.safetensors").read_bytes())
    assert made[0] == made[1]


def layer(name: SchemeName) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Scales]:
    """Activations (tokens, features) in bfloat16, a weight (rows, features), and its codes and scales, on the GPU."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(32, 576, generator=draw).cuda().bfloat16()
    weight = (torch.randn(192, 576, generator=draw) * 0.05).cuda()
    scales = scales_of(weight, name, None)
    return x, weight, rounding.quantize(weight, scales), scales


def check_evaluated(evaluated: torch.Tensor, kernel: torch.Tensor, exact: torch.Tensor) -> None:
    """`kernel` may scale activations in float32, where compressed-tensors and we do it in the model's dtype: some
    roundings fall otherwise, and the error must be as large, or a little larger."""
    assert 0.98 < apart(evaluated, exact) / apart(kernel, exact) < 1.1


def test_fp8_is_evaluated_as_the_kernel_computes_it() -> None:
    """The row-wise scaled product of FP8 codes, which vLLM has the like of."""
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU has no such kernel")
    x, weight, codes, scales = layer("FP8_DYNAMIC")
    restored = rounding.dequantize(codes, scales).bfloat16()

    def kernel(step: torch.Tensor) -> torch.Tensor:
        units, by_row = (x / step).to(torch.float8_e4m3fn), scales.step.T.contiguous()
        product: torch.Tensor = torch._scaled_mm(
            units, codes.T, scale_a=step.float(), scale_b=by_row, out_dtype=torch.bfloat16
        )
        return product

    step = x.abs().amax(dim=-1, keepdim=True) / fp8.FP8_MAX
    evaluated = fp8.round_tokens(x) @ restored.T
    assert apart(evaluated, kernel(step)) < 5e-3
    check_evaluated(evaluated, kernel(step.float()), x.float() @ weight.T)


def test_int8_is_evaluated_as_the_kernel_computes_it() -> None:
    x, weight, codes, scales = layer("W8A8")
    restored = rounding.dequantize(codes, scales).bfloat16()

    def kernel(step: torch.Tensor) -> torch.Tensor:
        units = (x / step).round().clamp(-128, 127).to(torch.int8)
        return torch._int_mm(units, codes.T) * step.float() * scales.step.T

    step = x.abs().amax(dim=-1, keepdim=True) / 127.5
    evaluated = int8.round_tokens(x) @ restored.T
    assert apart(evaluated, kernel(step)) < 5e-3
    check_evaluated(evaluated, kernel(step.float()), x.float() @ weight.T)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the size of `other`."""
    return float((one.float() - other.float()).norm() / other.float().norm())


@pytest.mark.parametrize("name", ["FP8_DYNAMIC", "W8A8", "W4A16", "NVFP4"])
def test_transformers_loads_it_onto_the_gpu_as_it_is(name: SchemeName, tiny: Path, tmp_path: Path) -> None:
    made = artifact(name, tiny, tmp_path / "artifact")
    theirs = AutoModelForCausalLM.from_pretrained(made, device_map="cuda")
    ours, source = load_for_inference(made, "cuda"), load_for_inference(tiny, "cuda")
    with torch.inference_mode():
        expected, found, before = (model(IDS.cuda()).logits.cpu() for model in (theirs, ours, source))
    assert apart(found, expected) < 0.05 < apart(before, expected) * 4


def test_every_score_is_that_of_a_cpu(smollm2: Checkpoint, tmp_path: Path) -> None:
    """In float32, of the real model; products of float32 are not rounded to TF32."""
    AutoModelForCausalLM.from_pretrained(smollm2.folder, dtype=torch.float32).save_pretrained(tmp_path / "wide")
    load_tokenizer(smollm2).save_pretrained(tmp_path / "wide")
    here, there = TransformersLM(tmp_path / "wide", "cpu"), TransformersLM(tmp_path / "wide", "cuda")
    assert there._shares
    for task in ("sciq", "hellaswag", "lambada_openai"):
        asked = requests(task, tmp_path)
        expected, found = (model.loglikelihood(asked, disable_tqdm=True) for model in (here, there))
        assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-3)
        assert [likeliest for _, likeliest in found] == [likeliest for _, likeliest in expected]


def test_memory_that_runs_out_halves_the_batch(tiny: Path, tmp_path: Path, leave: Callable[[int], None]) -> None:
    """Logits of all answers at once, in 16 and in 32 bits, take twice as much as is left."""
    asked = requests("hellaswag", tmp_path)
    model = TransformersLM(tiny, "cuda")
    expected, budget = model.loglikelihood(asked, disable_tqdm=True), model._budget
    leave(150 << 20)
    found = model.loglikelihood(asked, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=0.1)
    assert model._budget < budget
    leave(0)
    with pytest.raises(QuantgateError, match="does not hold the longest question"):
        model.loglikelihood(asked, disable_tqdm=True)


def test_a_model_that_the_gpu_does_not_hold_is_an_error_with_a_remedy(
    smollm2: Checkpoint, leave: Callable[[int], None]
) -> None:
    leave(100 << 20)
    with pytest.raises(QuantgateError, match="--device cpu"):
        load_for_inference(smollm2.folder, "cuda")


def test_a_whole_run_takes_the_gpu_by_itself_and_says_so(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "easy.yaml").write_text(EASY)
    small = ("--set", "calibrate.samples=8", "--set", "calibrate.seq_len=64", *PLAIN)
    gate = ("--set", f"gate.suite={tmp_path / 'easy.yaml'}", "--set", "gate.retention=0.51")
    done = cli("run", "int8", "--model", tiny, *small, *gate, "--to", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    record = Manifest.model_validate_json(done.stdout)
    assert record.evaluation.device == "cuda"
    assert record.hardware["gpu"] == torch.cuda.get_device_name()
    used = {stage.stage: stage.peak_gpu_memory for stage in record.stages}
    assert all(used[stage] > 0 for stage in ("quantize", "verify", "evaluate baseline", "evaluate artifact")), used
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
