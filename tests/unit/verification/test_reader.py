"""Artifacts in plain transformers, which reads nothing of ours: near their source there, or refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipelines.core.errors import BadInput, QuantgateError
from pipelines.environments import isolated
from pipelines.planning import checks, quantization_config, stage
from pipelines.planning.quantization_config import written_config
from pipelines.quantization.artifact import Artifact
from pipelines.quantization.stage import quantize
from pipelines.recipe.load import load_recipe
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.sentences import reader_line
from pipelines.verification import reader as reading
from pipelines.verification.reader import Reader
from pipelines.verification.stage import verify
from tests.conftest import edit_json
from tests.helpers.families import EXPERTS, MIXTRAL, UNTIED, write_model, write_text
from tests.helpers.plans import plan_checkpoint

NEMOTRON: dict[str, Any] = {
    "layers_block_type": ["attention", "moe", "mamba", "moe", "attention"],
    "num_hidden_layers": 5,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 1,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 64,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": UNTIED,
    "mixtral": {**MIXTRAL, **UNTIED},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 64, **UNTIED},
    "qwen3_moe": {**EXPERTS, **UNTIED},
    "nemotron_h": {**NEMOTRON, **UNTIED},
}
COMMAND = reading.command
"""Before tests start readers otherwise (`tests.helpers.warm_reader`)."""
IDS = torch.randint(2, 250, (1, 96), generator=torch.Generator().manual_seed(1))

Sources = Callable[..., Path]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Writes a small model of a kind, once in each type."""
    folder = tmp_path_factory.mktemp("sources")

    def source(kind: str, dtype: str = "bfloat16") -> Path:
        made = folder / f"{kind}-{dtype}"
        return made if made.exists() else write_model(made, kind, dtype, None, **MODELS[kind])

    return source


def recipe(*overrides: str) -> Recipe:
    """A recipe without data: `fp8` changed by `overrides`."""
    return load_recipe("fp8", overrides)


def changed(artifact: Artifact) -> Artifact:
    """The artifact as its files are now."""
    return artifact.model_copy(update={"files": {**artifact.files, "model.safetensors": "changed"}})


def edit_tensors(artifact: Artifact, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Artifact:
    file = artifact.checkpoint / "model.safetensors"
    save_file({name: part.clone() for name, part in edit(load_file(file)).items()}, file, metadata={"format": "pt"})
    return changed(artifact)


def in_transformers(folder: Path) -> torch.Tensor:
    """What anybody's transformers computes who loads the folder, in float32."""
    model, said = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not said["missing_keys"] and not said["mismatched_keys"]
    with torch.inference_mode():
        found: torch.Tensor = model(IDS).logits[0].float()
    return found


def moved(source: Path, artifact: Path) -> float:
    before, after = in_transformers(source), in_transformers(artifact)
    return float(((after - before).norm(dim=-1) / before.norm(dim=-1)).median())


W4 = ("quantize={method: rtn, scheme: W4A16, group_size: 32}",)
FP4 = ("quantize={method: rtn, scheme: NVFP4A16}",)


@pytest.mark.parametrize(
    ("kind", "dtype", "overrides", "allowed"),
    [
        ("llama", "bfloat16", (), 0.15),
        ("llama", "float16", FP4, 0.5),
        ("llama", "float32", FP4, 0.5),
        ("llama", "bfloat16", (*W4, "quantize.ignore=[lm_head,'layer:-1']"), 0.4),
        ("qwen2_moe", "bfloat16", (), 0.15),
        ("qwen3_moe", "float16", (), 0.15),
        ("qwen3_moe", "bfloat16", (*W4, "quantize.ignore=[lm_head]"), 0.5),
        ("qwen3_moe", "float16", ("quantize={method: rtn, scheme: MXFP4}", "quantize.ignore=[lm_head]"), 0.6),
        ("mixtral", "bfloat16", (), 0.15),
        ("mixtral", "bfloat16", ("quantize.rules=[{match: ['re:.*experts'], scheme: W4A16, group_size: 32}]",
                                 "quantize.ignore=[lm_head]"), 0.5),
        ("nemotron_h", "bfloat16", (), 0.3),
        ("nemotron_h", "float32", ("quantize.ignore=[lm_head,'layer:2']",), 0.3),
    ],
)  # fmt: skip
def test_artifacts_are_near_their_source_in_plain_transformers(
    sources: Sources, kind: str, dtype: str, overrides: tuple[str, ...], allowed: float
) -> None:
    source = sources(kind, dtype)
    artifact = quantize(plan_checkpoint(recipe(*overrides), source))
    reader = verify(artifact).reader
    assert (reader.program, reader.not_loaded) == ("transformers", "")
    narrowed = dtype != "bfloat16" and {scheme for scheme, _ in artifact.plan.formats} & {"NVFP4A16", "MXFP4"}
    assert reader.weights_error is not None and reader.weights_error < (0.01 if narrowed else 1e-5)
    assert moved(source, artifact.checkpoint) < allowed


@pytest.mark.parametrize(
    ("kind", "dtype", "overrides", "says"),
    [
        ("qwen3_moe", "bfloat16", FP4, "does not read experts in NVFP4A16 from a compressed-tensors checkpoint"),
        ("mixtral", "bfloat16", ("quantize.scheme=W8A8",), "does not read experts in W8A8"),
        ("qwen2_moe", "bfloat16", ("quantize.scheme=W4A16_ASYM", "quantize.group_size=32"), "experts in W4A16_ASYM"),
        ("nemotron_h", "bfloat16", ("quantize.scheme=FP8_BLOCK", "quantize.on_indivisible=shrink"), "in FP8_BLOCK"),
        ("qwen3_moe", "bfloat16", (*W4, "quantize.ignore=[lm_head,'layer:-1']"), "that are kept, like model.layers.2."),
        ("qwen3_moe", "bfloat16", (*W4, "quantize.ignore=[lm_head,'re:.*experts']"), "beside W4A16"),
        (
            "mixtral",
            "bfloat16",
            (*W4, "quantize.ignore=[lm_head]", "quantize.rules=[{match: ['layer:1'], scheme: W8A16}]"),
            "reads all experts in one format, and these would be in W4A16 32, W8A16",
        ),
        (
            "mixtral",
            "float16",
            ("quantize={method: rtn, scheme: MXFP4}",),
            "computes with FP4 weights in bfloat16, and of mixtral-float16 leaves others as they are stored, F16",
        ),
    ],
)
def test_what_transformers_misreads_is_refused_by_the_plan(
    sources: Sources, kind: str, dtype: str, overrides: tuple[str, ...], says: str
) -> None:
    """With a remedy that works."""
    with pytest.raises(BadInput) as caught:
        plan_checkpoint(recipe(*overrides), sources(kind, dtype))
    (problem,) = caught.value.problems
    assert says in problem.what
    assert problem.remedy == "recipe fp8 can"
    assert plan_checkpoint("fp8", sources(kind, dtype)).quantized


# Behind the plan


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (FP4, r"knows nothing of model\.layers\.0\.mlp\.experts\.0\.down_proj\.weight_global_scale, .* and 33 more"),
        (FP4, r"computes other logits .* the first modules that give something else: model\.layers\.0\.mlp\.experts,"),
        ((*W4, "quantize.ignore=[lm_head,'layer:-1']"), r"finds no model\.layers\.2\.mlp\.experts\.down_proj"),
        (
            ("quantize.scheme=W8A8", "quantize.ignore=[lm_head]"),
            r"failed to load: RuntimeError: [^\n]*experts\.gate_up_proj\)$",
        ),
    ],
)
def test_what_is_misread_is_not_verified_whatever_the_plan_says(
    sources: Sources, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], says: str
) -> None:
    monkeypatch.setattr(checks, "misread", lambda *_: [])
    monkeypatch.setattr(stage, "unreadable", lambda _: "")
    artifact = quantize(plan_checkpoint(recipe(*overrides), sources("qwen3_moe")))
    with pytest.raises(QuantgateError, match=says) as caught:
        verify(artifact)
    assert "Traceback" not in str(caught.value)


def test_modules_are_addressed_by_the_names_of_transformers_and_of_the_checkpoint(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored = written_config(plan_checkpoint("fp8", sources("nemotron_h")))["ignore"]
    assert {"backbone.layers.0.mixer.q_proj", "model.layers.0.mixer.q_proj"} < set(ignored)
    monkeypatch.setattr(stage, "unreadable", lambda _: "")
    monkeypatch.setattr(quantization_config, "module_addresses", lambda plan: {m.name: {m.name} for m in plan.modules})
    with pytest.raises(QuantgateError, match=r"finds no model\.layers\.0\.mixer\.k_proj\.weight_scale"):
        verify(quantize(plan_checkpoint(recipe("quantize.ignore=[lm_head,'layer:0']"), sources("nemotron_h"))))


def test_kept_experts_are_addressed_together(sources: Sources) -> None:
    """For vLLM calls them otherwise than the checkpoint does."""
    ignored = written_config(plan_checkpoint("fp8", sources("mixtral")))["ignore"]
    assert [pattern for pattern in ignored if "expert" in pattern] == [
        rf"re:(.*\.)?layers\.{layer}\.(.*\.)?experts\..*" for layer in (0, 2)
    ]
    assert "model.layers.0.mlp.gate" in ignored and "model.layers.0.block_sparse_moe.gate" in ignored


# Damaged artifacts


def halved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = "model.layers.1.mlp.up_proj.weight_scale"
    return {**tensors, name: tensors[name] / 2}


def swapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = [f"model.layers.1.mlp.{which}_proj.weight" for which in ("up", "gate")]
    return {**tensors, **{name: tensors[other] for name, other in zip(names, reversed(names), strict=True)}}


def misnamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("1.mlp.up_proj.weight_scale", "1.mlp.up_proj.scale"): part for name, part in tensors.items()}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (halved, r"model\.layers\.1\.mlp\.up_proj: its weights or scales are not those of the source \(6\.0 dB"),
        (swapped, r"model\.layers\.1\.mlp\.gate_proj: its weights or scales are not those of the source"),
        (misnamed, r"tensor model\.layers\.1\.mlp\.up_proj\.weight_scale is missing"),
    ],
)
def test_damaged_tensors_are_found_by_the_names_of_their_modules(
    sources: Sources, damage: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], says: str
) -> None:
    artifact = quantize(plan_checkpoint(recipe("quantize.ignore=[lm_head]"), sources("llama")))
    with pytest.raises(QuantgateError, match=says):
        verify(edit_tensors(artifact, damage))


@pytest.mark.parametrize(
    ("ignored", "says"),
    [
        (["lm_head"], r"finds no model\.layers\.0\..*weight_scale"),
        (["lm_head", "re:.*"], r"does not read 7 of its quantized tensors, like model\.layers\.1\."),
    ],
)
def test_a_wrong_list_of_kept_modules_is_found(sources: Sources, ignored: list[str], says: str) -> None:
    artifact = quantize(plan_checkpoint("fp8", sources("llama")))
    config = json.loads((artifact.checkpoint / "config.json").read_text())
    described = {**config["quantization_config"], "ignore": ignored}
    edit_json(artifact.checkpoint / "config.json", quantization_config=described)
    with pytest.raises(QuantgateError, match=says):
        verify(changed(artifact))


def test_a_format_of_experts_that_only_the_reader_mistakes_is_found(sources: Sources) -> None:
    """It takes the first format for theirs unless they are meant by a pattern."""
    rules = "quantize.rules=[{match: ['re:.*experts'], scheme: MXFP4}]"
    artifact = quantize(plan_checkpoint(recipe(*W4, "quantize.ignore=[lm_head]", rules), sources("qwen3_moe")))
    described = json.loads((artifact.checkpoint / "config.json").read_text())["quantization_config"]
    packed, experts = described["config_groups"]["group_1"], described["config_groups"]["group_0"]
    assert experts["format"] == "mxfp4-pack-quantized"
    experts["targets"] = [name for name in artifact.plan.quantized if ".experts." in name]
    described["config_groups"] = {"group_0": packed, "group_1": experts}
    edit_json(artifact.checkpoint / "config.json", quantization_config=described)
    with pytest.raises(QuantgateError, match=r"failed to load: .* \(model\.layers\..*\.experts\.down_proj"):
        verify(changed(artifact))


# The process


def test_the_reader_runs_where_nothing_of_ours_is_found(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither through variables of the environment nor among what is installed."""
    (tmp_path / "transformers.py").write_text("raise SystemError('taken from PYTHONPATH')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(reading, "command", COMMAND)
    reader = verify(quantize(plan_checkpoint(recipe(*W4), sources("llama")))).reader
    assert reader.weights_error is not None and reader.weights_error < 1e-5
    folder, name = isolated.serve("transformers_reader")
    code = f"import sys; sys.path.insert(0, {folder!r}); import {name}; {name}.commands(None); import pipelines"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert "import of pipelines halted" in done.stderr


# Where the reader is not here


@pytest.mark.parametrize("export", ["autogptq", "autoawq"])
def test_what_cannot_be_loaded_here_says_so(sources: Sources, tmp_path: Path, export: str) -> None:
    overrides = (f"export={export}", "quantize.group_size=32", *write_text(tmp_path))
    reader = verify(quantize(plan_checkpoint(load_recipe("int4-gptq", overrides), sources("llama")))).reader
    assert (reader.version, reader.median_error) == (None, None)
    assert reader_line(reader).startswith("not loaded here: transformers needs the package gptqmodel for it, which")


def test_the_reader_in_one_line() -> None:
    line = reader_line(Reader(program="transformers", version="5.17.0", dtype="bfloat16", median_error=0.0123,
                              largest_error=0.2, weights_error=1e-6))  # fmt: skip
    assert line == (
        "loaded by transformers 5.17.0: its logits in bfloat16 are 1.23% of their size from those evaluated "
        "(median over tokens, 0.0001% with the same type and no rounding)"
    )
    assert reader_line(Reader(program="llama.cpp", version="b9")) == "loaded by llama.cpp b9, which evaluated it"
