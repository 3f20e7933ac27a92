"""The calibrated engine: its arithmetic against textbooks, its measurements against the model's own hooks."""

import importlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipelines.calibration.stage import calibrate
from pipelines.calibration.tokens import CalibrationTokens, read_tokens
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core.errors import BadInput, QuantgateError
from pipelines.formats import rounding
from pipelines.formats.description import Scales
from pipelines.formats.schemes import SchemeName, config_group
from pipelines.planning.plan import CheckpointPlan, Module
from pipelines.quantization.engines import layerwise
from pipelines.quantization.engines.layer import Layer
from pipelines.quantization.engines.layerwise import LayerQuantizer
from pipelines.quantization.engines.loading import every_token_to_every_expert, load_for_calibration
from pipelines.quantization.engines.memory import release_pages
from pipelines.quantization.engines.stream import Stream
from pipelines.quantization.methods import awq, clipping, gptq, smoothing
from pipelines.quantization.methods.statistics import Collector, InputStatistics
from pipelines.quantization.stage import quantize
from pipelines.quantization.written import read_smoothing
from pipelines.recipe.load import load_recipe
from pipelines.runtimes.loading import load_for_inference
from tests.conftest import edit_json
from tests.helpers.families import ALL_HEADS, EXPERTS, GEMMA, MIXTRAL, TEXT, tensors, write_model
from tests.helpers.layers import DAMPENING, energy, inputs, moment, scales_of
from tests.helpers.plans import plan_checkpoint


def textbook(weight: torch.Tensor, scales: Scales, hessian: torch.Tensor, dampening: float) -> torch.Tensor:
    """GPTQ as the paper's algorithm 1 has it, in float64 and a column at a time; the rounded weight."""
    order = hessian.diagonal().argsort(descending=True, stable=True)
    hessian = hessian.double()[order][:, order]
    hessian += dampening * hessian.diagonal().mean() * torch.eye(len(hessian))
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    left, done = weight.double(), torch.empty_like(weight)
    for step, column in enumerate(order.tolist()):
        whole = left.float()
        done[:, column] = rounding.dequantize(rounding.quantize(whole, scales), scales)[:, column]
        error = (left[:, column] - done[:, column]) / factor[step, step]
        rest = order[step + 1 :]
        left[:, rest] -= torch.outer(error, factor[step, step + 1 :])
    return done


@pytest.mark.parametrize(
    ("scheme", "rows", "columns", "group_size"),
    [
        ("W8A16", 24, 1, None),
        ("W8A16", 24, 15, None),
        ("W8A8", 24, 53, None),  # two leaves and a bit
        ("FP8_DYNAMIC", 24, 40, None),
        ("FP8_BLOCK", 32, 48, 16),
        ("W4A16", 24, 96, 32),
        ("W4A16_ASYM", 24, 80, 16),
        ("NVFP4", 24, 80, 16),
        ("MXFP4", 24, 64, 32),
    ],
)
def test_gptq_is_the_papers(scheme: SchemeName, rows: int, columns: int, group_size: int | None) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    hessian, scales = moment(inputs(columns)), scales_of(weight, scheme, group_size)
    ours = rounding.dequantize(gptq.round_weight(weight, scales, hessian, DAMPENING), scales)
    theirs = textbook(weight, scales, hessian, DAMPENING)
    assert torch.equal(ours, theirs)
    nearest = rounding.dequantize(rounding.quantize(weight, scales), scales)
    lost, lost_by_nearest = energy(ours - weight, hessian), energy(nearest - weight, hessian)
    assert lost == lost_by_nearest if columns == 1 else lost < 0.9 * lost_by_nearest


def test_inputs_that_are_always_zero_change_nothing_for_the_others() -> None:
    weight = torch.randn(16, 40)
    x = inputs(40)
    dead = torch.arange(40) % 3 == 0
    x[:, dead] = 0
    scales = scales_of(weight, "W8A16", None)
    codes = gptq.round_weight(weight, scales, moment(x), DAMPENING)
    alone = gptq.round_weight(weight[:, ~dead], scales, moment(x[:, ~dead]), DAMPENING)
    assert torch.equal(codes[:, ~dead], alone)
    assert torch.equal(codes[:, dead], rounding.quantize(weight, scales)[:, dead])


@pytest.mark.parametrize(
    ("x", "dampening"),
    [
        (torch.zeros(8, 40), DAMPENING),
        (torch.ones(8, 40), DAMPENING),
        (inputs(40) * torch.where(torch.arange(40) == 7, 1e6, 1.0), DAMPENING),
        (inputs(40) * 1e-18, DAMPENING),
        (inputs(40, tokens=3), DAMPENING),
        (inputs(40, tokens=3), 1e-9),  # too little: more is taken
    ],
    ids=["nothing", "rank 1", "one giant", "minute", "3 tokens", "no dampening"],
)
def test_second_moments_that_cannot_be_inverted(x: torch.Tensor, dampening: float) -> None:
    weight = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    scales, hessian = scales_of(weight, "W4A16", 8), moment(x)
    nearest = rounding.dequantize(rounding.quantize(weight, scales), scales)
    restored = rounding.dequantize(gptq.round_weight(weight, scales, hessian, dampening), scales)
    assert energy(restored - weight, hessian) <= energy(nearest - weight, hessian)
    assert (restored - weight).norm() < 3 * (nearest - weight).norm()


class Reads(torch.nn.Module):
    """Two modules that read the same tensor, and one that reads another of the same shape, in reused memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (torch.nn.Linear(24, 24, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled = x * 2
        between = self.first(scaled) + self.second(scaled)
        del scaled
        moved: torch.Tensor = self.third(between * 1)
        return moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_statistics_are_those_of_the_inputs_however_they_come_in_batches(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Reads().to(dtype), torch.randn(12, 10, 24).to(dtype)
    between = model.first(x * 2) + model.second(x * 2)
    for batches in ((12,), (5, 4, 3), (1,) * 12):
        collector = Collector(dict(model.named_children()), with_hessian=True)
        for batch in torch.split(x, list(batches)):
            model(batch)
            collector.after_forward()
        found = collector.close()
        assert found["first"] is found["second"] and found["first"] is not found["third"]
        for name, read in (("first", x * 2), ("third", between)):
            wide = read.flatten(0, 1).double()
            measured = found[name]
            assert measured.tokens == 120
            last_bit = 2e-6 if name == "third" else 0  # of a product, it depends on the batch on some processors
            assert torch.allclose(measured.largest.double(), wide.abs().amax(0), rtol=last_bit, atol=0)
            assert torch.allclose(measured.mean_magnitude.double(), wide.abs().mean(0), rtol=1e-5)
            assert (measured.hessian - moment(wide)).norm() < 1e-5 * moment(wide).norm()
    assert not any(module._forward_pre_hooks for module in model.children())


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A calibration set whose texts, each a sample of its own, are of five different lengths."""
    folder = tmp_path_factory.mktemp("ragged")
    (folder / "text.txt").write_text("\n\n".join(row[: 20 + 7 * (n % 5)] for n, row in enumerate(TEXT.split("\n\n"))))
    (folder / "set.yaml").write_text(
        "{version: 1, name: ragged, summary: of the tests, source: {kind: files, paths: [text.txt]}}"
    )
    return f"calibrate={{set: {folder / 'set.yaml'}, samples: 20, seq_len: 48, pack: false}}"


Prepare = Callable[..., tuple[CheckpointPlan, CalibrationTokens]]


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory, ragged: str) -> Prepare:
    """Writes a model of some type, and plans a way to quantize it."""
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def plan(how: str, kind: str = "llama", dtype: str = "float32", **settings: object) -> Any:
        key = f"{kind} {dtype} {settings}"
        if key not in made:
            made[key] = write_model(root / str(len(made)), kind, dtype, None, **settings)
        planned = plan_checkpoint(load_recipe("int8", (f"quantize={{{how}}}", ragged)), made[key])
        return planned, calibrate(planned)

    return plan


def run(plan: CheckpointPlan, tokens: CalibrationTokens, stage: Path) -> Path:
    """The artifact's weight files, made anew."""
    (stage / "artifact").mkdir(parents=True)
    layerwise.quantize(plan, tokens, stage / "artifact")
    return stage / "artifact"


def each_alone(layer: Layer) -> list[list[Any]]:
    return [[module] for module in layer.modules.values()]


@pytest.mark.parametrize(
    ("how", "settings"),
    [
        ("method: gptq, scheme: W4A16, group_size: 32", {"kind": "qwen2"}),
        ("method: gptq, scheme: FP8_BLOCK, group_size: 16, smoothquant: 0.5", {}),
        ("method: awq, scheme: W4A16_ASYM, group_size: 32", {}),
        ("method: gptq, scheme: W8A16", {"kind": "qwen3_moe", **EXPERTS}),
    ],
)
def test_modules_rounded_together_are_rounded_as_if_alone_and_every_time_alike(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, settings: dict[str, Any]
) -> None:
    plan, tokens = prepare(how, **settings)
    first, again = run(plan, tokens, tmp_path / "first"), run(plan, tokens, tmp_path / "again")
    monkeypatch.setattr(Layer, "groups", each_alone)
    alone = run(plan, tokens, tmp_path / "alone")
    for file in first.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes() == (alone / file.name).read_bytes()


class Measured:
    """Largest inputs by column, second moments of the inputs, and largest keys and values: one sample at a time, by
    hooks and caches of its own."""

    def __init__(self, folder: Path, tokens: CalibrationTokens) -> None:
        model = load_for_inference(folder, "cpu")
        self.inputs: dict[str, torch.Tensor] = {}
        self.moments: dict[str, torch.Tensor] = {}
        self.caches: dict[str, float] = {}
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(self._see(name))
        with torch.inference_mode():
            for sample in read_tokens(tokens):
                cache = model(torch.tensor([sample]), use_cache=True).past_key_values
                for number, layer in enumerate(cache.layers):
                    for what, states in (("k", layer.keys), ("v", layer.values)):
                        name = f"model.layers.{number}.self_attn.{what}_scale"
                        self.caches[name] = max(self.caches.get(name, 0.0), float(states.abs().max()))

    def _see(self, name: str) -> Any:
        def see(_: object, arguments: tuple[torch.Tensor]) -> None:
            x = arguments[0].flatten(0, -2).float()
            self.inputs[name] = torch.maximum(self.inputs.get(name, x[0].abs()), x.abs().amax(0))
            self.moments[name] = self.moments.get(name, 0.0) + x.T @ x

        return see


@pytest.mark.parametrize(
    ("how", "settings", "suffix", "largest"),
    [
        ("method: rtn, scheme: FP8_STATIC, kv_cache: FP8", {"kind": "qwen3"}, "input_scale", 448),
        ("method: rtn, scheme: NVFP4, kv_cache: FP8", {}, "input_global_scale", -448 * 6),
        (
            "method: rtn, scheme: FP8_STATIC, ignore: [lm_head, 'layer:1'], kv_cache: FP8",
            {"dtype": "bfloat16", "num_key_value_heads": 4},
            "input_scale",
            448,
        ),
        (
            "method: rtn, scheme: FP8_STATIC",
            {"kind": "gemma3_text", **GEMMA, "sliding_window": 16, "sliding_window_pattern": 2},
            "input_scale",
            448,
        ),
        ("method: rtn, scheme: NVFP4", {"kind": "phi3"}, "input_global_scale", -448 * 6),
    ],
)
def test_scales_of_what_is_measured_are_those_of_the_sources_activations(
    prepare: Prepare, tmp_path: Path, how: str, settings: dict[str, Any], suffix: str, largest: float
) -> None:
    """Also behind a layer that is ignored, with sliding windows, and from samples of different lengths."""
    plan, tokens = prepare(how, **settings)
    stored = tensors(run(plan, tokens, tmp_path))
    measured = Measured(plan.checkpoint.folder, tokens)
    near = 0.02 if settings.get("dtype") else 1e-4
    scales = {name: float(tensor) for name, tensor in stored.items() if name.endswith(suffix)}
    assert scales.keys() == {f"{name}.{suffix}" for name in plan.quantized}
    for name in plan.quantized:
        seen = float(measured.inputs[name].max())
        expected = seen / largest if largest > 0 else -largest / seen
        assert scales[f"{name}.{suffix}"] == pytest.approx(expected, rel=near)
    for fused in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
        for number in range(3):
            assert len({scales.get(f"model.layers.{number}.{name}.{suffix}") for name in fused}) == 1
    caches = {name: float(tensor) * 448 for name, tensor in stored.items() if name.endswith(("k_scale", "v_scale"))}
    assert caches == pytest.approx(measured.caches if plan.attentions else {}, rel=near)


@pytest.mark.parametrize("how", ["method: awq, scheme: W8A16", "method: gptq, scheme: W8A16, smoothquant: 0.8"])
def test_scales_of_the_cache_are_of_what_the_rounded_model_writes(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """AWQ divides values by factors, which the output projection multiplies in again."""
    monkeypatch.setattr(awq, "awq_factors", lambda weights, *_: 0 * next(iter(weights.values()))[0] + 4)
    plan, tokens = prepare(f"{how}, kv_cache: FP8, ignore: [lm_head, 'layer:1']", **ALL_HEADS)
    stored = tensors(run(plan, tokens, tmp_path))
    measured = Measured(plan.checkpoint.folder, tokens)
    for name, largest in measured.caches.items():
        divided = 4 if "awq" in how and name.endswith("v_scale") and ".layers.1." not in name else 1
        assert float(stored[name]) * 448 == pytest.approx(largest / divided, rel=0.1)


def test_scales_behind_a_smoothed_norm_are_of_the_smoothed_activations(prepare: Prepare, tmp_path: Path) -> None:
    plan, tokens = prepare("method: gptq, scheme: FP8_STATIC, smoothquant: 0.8")
    stored, factors = tensors(run(plan, tokens, tmp_path)), read_smoothing(tmp_path)
    measured = Measured(plan.checkpoint.folder, tokens)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.up_proj"):
        smoothed = measured.inputs[name] / factors[f"{name}.columns"]
        assert float(stored[f"{name}.input_scale"]) * 448 == pytest.approx(float(smoothed.max()), rel=0.1)
        assert float(smoothed.max()) < 0.7 * float(measured.inputs[name].max())


def test_gptq_sees_the_second_moments_of_the_tokens_that_reach_its_layer(prepare: Prepare, tmp_path: Path) -> None:
    """Behind two layers that are ignored these are the source's, which hooks measure."""
    ignore = "ignore: [lm_head, 'layer:0', 'layer:1']"
    plan, tokens = prepare(f"method: gptq, scheme: W4A16, group_size: 32, {ignore}")
    stored = tensors(run(plan, tokens, tmp_path))
    measured, weights = Measured(plan.checkpoint.folder, tokens), tensors(plan.checkpoint.folder)
    for name in ("self_attn.k_proj", "mlp.gate_proj"):
        full = f"model.layers.2.{name}"
        weight, hessian = weights[f"{full}.weight"], measured.moments[full]
        parts = {suffix: stored[f"{full}.{suffix}"] for suffix in ("weight_packed", "weight_scale")}
        codes, scales = rounding.unpack(parts, "W4A16", 32, 64)
        same = codes == gptq.round_weight(weight, scales, hessian, DAMPENING)
        assert same.float().mean() > 0.99
        assert (codes == rounding.quantize(weight, scales)).float().mean() < 0.9


@pytest.mark.parametrize(
    ("scaled", "stored", "told"), [("up_proj", "float16", "down_proj"), ("down_proj", "bfloat16", "down_proj")]
)
def test_what_overflows_is_not_the_sources_fault(
    prepare: Prepare, tmp_path: Path, scaled: str, stored: str, told: str
) -> None:
    """Activations, or weights that a wider type holds."""
    plan, tokens = prepare("method: gptq, scheme: W4A16, group_size: 32", dtype=stored)
    weights = tensors(plan.checkpoint.folder)
    weights[f"model.layers.1.mlp.{scaled}.weight"] *= 1e5 if stored == "float16" else 1e8
    broken = Path(shutil.copytree(plan.checkpoint.folder, tmp_path / "broken"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    said = rf"layers.1.mlp.{told} holds or reads NaN or infinite numbers in float16; try --dtype float32"
    with pytest.raises(QuantgateError, match=said):
        run(plan_checkpoint(plan.recipe, broken, dtype="float16"), tokens, tmp_path)


def test_layers_that_read_more_than_hidden_states_are_refused(prepare: Prepare) -> None:
    """Gemma 4 gives each layer embeddings of the tokens, which are not the same for every sample."""
    settings = {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 258, "num_kv_shared_layers": 0}
    layers = {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "global_head_dim": 16}
    how = "method: rtn, scheme: FP8_STATIC, ignore: [lm_head, per_layer_model_projection]"
    with pytest.raises(BadInput, match="read more of a text than hidden states"):
        prepare(how, "gemma4_text", **GEMMA, **settings, **layers)


QKV, MLP, UP, VALUES = "input_layernorm", "post_attention_layernorm", "mlp.up_proj", "self_attn.v_proj"
EXPERTS_UP = {f"mlp.experts.{expert}.up_proj" for expert in range(4)}
MIXTRAL_UP = {f"block_sparse_moe.experts.{expert}.w3" for expert in range(4)}
SMOOTHED: list[tuple[str, dict[str, Any], set[str]]] = [
    # model type, settings, what is divided in each layer
    ("llama", {}, {QKV, MLP, UP}),  # two queries share a value: the output projection's columns are not the values'
    ("llama", ALL_HEADS, {QKV, VALUES, MLP, UP}),
    ("qwen2", ALL_HEADS, {QKV, VALUES, MLP, UP}),
    ("gemma2", GEMMA, {QKV, "pre_feedforward_layernorm", UP}),
    ("gemma3_text", {**GEMMA, **ALL_HEADS}, {VALUES, "pre_feedforward_layernorm", UP}),
    ("phi3", {}, {QKV, MLP, "mlp.gate_up_proj"}),
    ("phi3", ALL_HEADS, {QKV, "self_attn.qkv_proj", MLP, "mlp.gate_up_proj"}),
    ("mixtral", MIXTRAL, {QKV, *MIXTRAL_UP}),
    ("qwen3_moe", EXPERTS, {QKV, *EXPERTS_UP}),
    ("starcoder2", {}, {QKV}),  # a norm with a bias
    ("nemotron", {}, {QKV, MLP}),  # with an offset too; and what up writes is squared
    ("olmo2", {}, {UP}),  # the norm behind attention is not what the MLP reads
    ("phi", {}, set()),  # the MLP reads attention's norm too
    ("stablelm", {"use_parallel_residual": True}, {UP}),
]


class Nowhere:
    """Where weights are written that nobody reads."""

    def write(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("kind", "settings", "divided"), SMOOTHED, ids=[f"{row[0]}-{len(row[1])}" for row in SMOOTHED])
def test_smoothing_leaves_the_models_function_alone(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, kind: str, settings: dict[str, Any], divided: set[str]
) -> None:
    """By factors from 0.02 to 50, on a model that is smoothed but not rounded."""
    draw = torch.Generator().manual_seed(0)

    def any_factors(weights: dict[str, torch.Tensor], *_: object) -> torch.Tensor:
        return torch.exp(8 * torch.rand(next(iter(weights.values())).shape[1], generator=draw) - 4)

    def unrounded(_: object, layer: Layer, group: list[Module]) -> None:
        for module in group:
            layer.linears[module.name].weight.copy_(layer.weights[module.name])

    monkeypatch.setattr(awq, "awq_factors", any_factors)
    monkeypatch.setattr(LayerQuantizer, "round_together", unrounded)
    plan, tokens = prepare("method: awq, scheme: W8A16", kind, **settings)
    samples = torch.tensor([sample[:20] for sample in read_tokens(tokens)])
    with torch.inference_mode(), every_token_to_every_expert(plan):
        loaded = load_for_calibration(plan)
        before = loaded.model(samples).logits
        stream = Stream(loaded.model, loaded.layers, [samples], torch.device("cpu"))
        quantizer = LayerQuantizer(plan, loaded, stream, Nowhere())  # type: ignore[arg-type]
        smoothed = [quantizer.quantize_layer(number) for number in range(len(loaded.layers))]
        after = loaded.model(samples).logits
    assert (after - before).norm() < 1e-5 * before.norm()
    names = [name for layer in smoothed for name in (*layer.changed, *layer.factors)]
    changed = {name.rpartition(".")[0] for name in names if not name.endswith(".columns")}
    assert changed == {f"model.layers.{number}.{name}" for number in range(3) for name in divided}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("llama", "LlamaRMSNorm"),
        ("gemma2", "Gemma2RMSNorm"),
        ("gemma3n", "Gemma3nRMSNorm"),  # without the offset of its predecessors
        ("qwen3_next", "Qwen3NextRMSNorm"),
        ("nemotron", "NemotronLayerNorm1P"),
        ("cohere", "CohereLayerNorm"),
    ],
)
def test_norms_are_divided_in_their_own_arithmetic(module: str, name: str) -> None:
    """Even where so little is left of 1 + weight that bfloat16 would round the weight to -1."""
    modeling = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    torch.manual_seed(0)
    norm = getattr(modeling, name)(64).to(torch.bfloat16)
    for parameter in norm.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    x, factors = torch.randn(32, 64, dtype=torch.bfloat16), torch.logspace(-4, 4, 64)
    with torch.inference_mode():
        before = norm(x).float()
        divided = smoothing.divide_output(norm, factors, torch.bfloat16)
        after = norm(x).float() * divided
    assert torch.allclose(after, before, rtol=0.02, atol=0.02)
    assert divided[factors < 50] == pytest.approx(factors[factors < 50], rel=0.2)


def energies(error: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """Of each row."""
    return ((error @ moment) * error).sum(-1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("scheme", "group_size"), [("W4A16", 16), ("W4A16_ASYM", 32), ("W8A16", None)])
def test_awq_never_loses_more_than_rounding_to_nearest(scheme: SchemeName, group_size: int | None, seed: int) -> None:
    torch.manual_seed(seed)
    x = inputs(96) * torch.where(torch.arange(96) % 17 == seed, 20.0, 1.0)
    measured = InputStatistics(moment(x), x.abs().amax(0), x.abs().sum(0), len(x))
    weights = {"a": torch.randn(32, 96), "b": torch.randn(16, 96) * torch.rand(96)}

    def rounded(weight: torch.Tensor, _: str = "") -> torch.Tensor:
        scales = rounding.find_scales(weight, scheme, group_size)
        return rounding.dequantize(rounding.quantize(weight, scales), scales)

    def lost(factors: torch.Tensor) -> float:
        return sum(energy(rounded(w * factors) / factors - w, measured.hessian) for w in weights.values())

    factors = awq.awq_factors(weights, measured, group_size, rounded)
    assert lost(factors) < 0.9 * lost(torch.ones(96))
    for weight in weights.values():

        def shrunken(share: float, weight: torch.Tensor = weight) -> Scales:
            return rounding.find_scales(weight, scheme, group_size, shrink=share)

        def by_group(scales: Scales, weight: torch.Tensor = weight) -> torch.Tensor:
            error = rounding.dequantize(rounding.quantize(weight, scales), scales) - weight
            size = 96 // scales.scale.shape[1]
            parts = [slice(first, first + size) for first in range(0, 96, size)]
            return torch.stack([energies(error[:, part], measured.hessian[part, part]) for part in parts], dim=1)

        each = torch.stack([by_group(shrunken(share)) for share in (1.0, *clipping.SHARES)])
        chosen = by_group(clipping.clipped_scales(weight, shrunken(1.0), shrunken, measured))
        assert torch.allclose(chosen, each.amin(0), rtol=0.02)  # where candidates are close, any will do
        assert (each.amin(0) < each[0]).any()


@pytest.mark.parametrize(
    ("how", "nearest", "share"),
    [
        ("method: awq, scheme: W4A16_ASYM, group_size: 32", "W4A16_ASYM, group_size: 32", 0.9),
        ("method: awq, scheme: W4A16, group_size: 64", "W4A16, group_size: 64", 0.9),
        ("method: gptq, scheme: W4A16, group_size: 32", "W4A16, group_size: 32", 0.3),
        ("method: gptq, scheme: NVFP4", "NVFP4A16", 0.3),
        ("method: gptq, scheme: W8A8, smoothquant: 0.5", "W8A16", 0.3),
    ],
)
def test_each_method_beats_rounding_to_nearest_in_the_same_format(
    prepare: Prepare, tmp_path: Path, how: str, nearest: str, share: float
) -> None:
    """In the errors of the first layer's outputs, whose inputs are the source's."""
    lost = []
    for number, chosen in enumerate((how, f"method: rtn, kv_cache: FP8, scheme: {nearest}")):  # the cache needs data
        plan, tokens = prepare(chosen, **ALL_HEADS)
        errors = errors_by_module(plan, tokens, tmp_path / str(number))
        lost.append(sum(error for name, error in errors.items() if ".layers.0." in name))
    assert lost[0] < share * lost[1]


def errors_by_module(plan: CheckpointPlan, tokens: CalibrationTokens, stage: Path) -> dict[str, float]:
    """Module → energy of the error of its outputs, relative to that of the outputs, for the source's inputs."""
    stored, factors = tensors(run(plan, tokens, stage)), read_smoothing(stage)
    restored = {}
    for name, module in plan.quantized.items():
        assert module.scheme
        parts = {suffix: stored[f"{name}.{suffix}"] for suffix in module.parts if suffix.startswith("weight")}
        codes, scales = rounding.unpack(parts, module.scheme, module.group_size, module.shape[1])
        columns, rows = factors.get(f"{name}.columns"), factors.get(f"{name}.rows")
        restored[name] = rounding.dequantize(codes, scales)
        restored[name] = restored[name] if columns is None else restored[name] / columns
        restored[name] = restored[name] if rows is None else restored[name] * rows[:, None]
    return output_errors(plan, tokens, restored)


def output_errors(
    plan: CheckpointPlan, tokens: CalibrationTokens, restored: dict[str, torch.Tensor]
) -> dict[str, float]:
    weights = tensors(plan.checkpoint.folder)
    moments = Measured(plan.checkpoint.folder, tokens).moments
    errors = {}
    for name, weight in restored.items():
        source = weights[f"{name}.weight"].float()
        errors[name] = energy(weight.float() - source, moments[name]) / energy(source, moments[name])
    return errors


@pytest.fixture(scope="module")
def shortened(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Checkpoint]:
    """SmolLM2 without the layers from a first to a last: worse at language than it was, but with real weights, whose
    outliers and correlated inputs are what the methods differ in, and which random weights do not have."""

    def shorten(first: int, last: int) -> Checkpoint:
        folder = tmp_path_factory.mktemp("shortened") / "model"
        shutil.copytree(smollm2.folder, folder)
        kept = {}
        for name, tensor in tensors(smollm2.folder).items():
            found = re.fullmatch(r"(model\.layers\.)(\d+)(\..*)", name)
            if found is None:
                kept[name] = tensor
            elif (number := int(found[2])) < first or number >= last:
                kept[f"{found[1]}{number if number < first else number - last + first}{found[3]}"] = tensor
        for file in folder.glob("*.safetensors"):
            file.unlink()
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        edit_json(folder / "config.json", num_hidden_layers=30 - (last - first))
        return read_checkpoint(folder)

    return shorten


@pytest.mark.slow
def test_gptq_loses_no_more_than_llmcompressors(shortened: Callable[[int, int], Checkpoint], tmp_path: Path) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM

    source = shortened(4, 30)
    few = ["calibrate.samples=16", "calibrate.seq_len=256"]
    plan = plan_checkpoint(load_recipe("int4-gptq", ["quantize.group_size=64", *few]), source)
    tokens = calibrate(plan)
    ours = errors_by_module(plan, tokens, tmp_path)
    samples = read_tokens(tokens)
    model = AutoModelForCausalLM.from_pretrained(source.folder, dtype="auto")
    group = config_group("W4A16", ["Linear"], 64)
    del group["format"]
    oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": samples, "attention_mask": [[1] * 256] * len(samples)}),
        recipe=[GPTQModifier(config_groups={"group_0": group}, ignore=["lm_head"], dampening_frac=DAMPENING)],
        num_calibration_samples=len(samples),
        max_seq_length=256,
    )
    restored = {name: model.get_submodule(name).weight.detach() for name in plan.quantized}
    theirs = output_errors(plan, tokens, restored)
    assert sum(ours.values()) <= sum(theirs.values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheme"), [("int4-gptq", "W4A16"), ("int4-awq", "W4A16_ASYM")])
@pytest.mark.parametrize("cut", [(30, 30), (8, 23)], ids=["whole", "half"])
def test_int4_methods_keep_closer_to_the_source_than_rounding_to_nearest(
    shortened: Callable[[int, int], Checkpoint], cut: tuple[int, int], name: str, scheme: str
) -> None:
    """By the divergence of the predictions on text that calibration has not seen, at the same size."""
    source = shortened(*cut)
    few = ["calibrate.samples=16", "calibrate.seq_len=256"]
    plan = plan_checkpoint(load_recipe(name, few), source)
    simple = f"quantize={{method: rtn, scheme: {scheme}, on_indivisible: shrink}}"
    nearest = plan_checkpoint(load_recipe("int8-weight-only", [simple]), source)
    assert plan.bytes_after == nearest.bytes_after
    unseen = calibrate(
        plan_checkpoint(load_recipe(name, ["calibrate.samples=8", *few[1:], "calibrate.seed=7"]), source)
    )
    ours, theirs = (divergence(source, quantize(way).checkpoint, unseen) for way in (plan, nearest))
    assert ours < 0.75 * theirs


def divergence(source: Checkpoint, artifact: Path, tokens: CalibrationTokens) -> float:
    """Of the artifact's next-token distributions from the source's, in nats per token."""
    samples = torch.tensor(read_tokens(tokens))
    models = [load_for_inference(folder, "cpu") for folder in (source.folder, artifact)]
    total = 0.0
    with torch.inference_mode():
        for sample in torch.split(samples, 1):
            before, after = (model(sample).logits[0].float().log_softmax(-1) for model in models)
            total += float(torch.nn.functional.kl_div(after, before, reduction="sum", log_target=True))
    return total / samples.numel()


def test_what_was_let_go_is_read_again(tmp_path: Path) -> None:
    """Pages of a file leave memory, and neither they nor memory of our own lose a byte."""
    from safetensors import safe_open

    values = torch.arange(4 << 20, dtype=torch.float32)
    save_file({"a": values}, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        mapped = file.get_tensor("a")
        own = values.clone()
        assert torch.equal(mapped, values)
        before = _resident_of_files()
        for tensor in (mapped, own, own[5:7]):
            release_pages(tensor)
        assert _resident_of_files() < before - mapped.nbytes // 2
        assert torch.equal(mapped, values) and torch.equal(own, values)


def _resident_of_files() -> int:
    """Bytes of this process that mirror files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))
