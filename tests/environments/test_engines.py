"""Other projects' engines: the protocol with a real worker in an environment of its own, and the engines themselves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipelines.checkpoint.headers import Checkpoint
from pipelines.core.errors import BadInput, QuantgateError
from pipelines.core.processes import WorkerProcess, clean_variables
from pipelines.environments import isolated
from pipelines.environments.engines import ENGINES as DESCRIBED
from pipelines.environments.engines import Engine
from pipelines.environments.isolated import serve
from pipelines.formats.repack import unpack
from pipelines.formats.rounding import dequantize
from pipelines.quantization.artifact import CheckpointArtifact
from pipelines.quantization.stage import quantize
from pipelines.recipe.load import load_recipe
from pipelines.runtimes.loading import load_for_inference
from pipelines.verification.stage import verify
from tests.conftest import VOCABULARY, Cli, edit_json, make_tiny
from tests.helpers.families import ALL_HEADS, UNTIED, write_model, write_text
from tests.helpers.plans import plan_checkpoint

ENGINES = ("gptqmodel", "modelopt", "auto-gptq", "autoawq")
ENGINE_OF: dict[str, Engine] = {"gptq-autogptq": "auto-gptq", "awq-autoawq": "autoawq"}
SMALL_GROUPS = ("quantize.group_size=32",)
RECIPES: dict[str, tuple[str, ...]] = {
    "gptq-gptqmodel": SMALL_GROUPS,
    "awq-gptqmodel": SMALL_GROUPS,
    "gptq-autogptq": (*SMALL_GROUPS, "quantize.experimental_cpu=true"),
    "awq-autoawq": SMALL_GROUPS,
    "fp8-modelopt": (),
    "nvfp4-modelopt": (),
    "int8-sq-modelopt": (),
    "int4-awq-modelopt": SMALL_GROUPS,
}
"""Recipes of other projects' engines, and what they need for a small model on a CPU."""
ENGINE = """
import os, signal, sys, time

def commands(report):
    def add(a, b):
        report(1, 2, "adding")
        print("said on standard output")
        return a + b
    def fail():
        raise ValueError("no such layer")
    def end(code):
        print("last words", file=sys.stderr, flush=True)
        os._exit(code)
    def die():
        os.kill(os.getpid(), signal.SIGKILL)
    def wait():
        time.sleep(600)
    def prefix():
        return sys.prefix
    return {"add": add, "fail": fail, "end": end, "die": die, "wait": wait, "prefix": prefix}
"""


@pytest.fixture(scope="module")
def wide(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `tiny`, with as many output features everywhere as GPTQModel's AWQ wants."""
    return make_tiny(tmp_path_factory.mktemp("checkpoints") / "wide", smollm2, num_key_value_heads=4)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What starts the real worker, with an engine of a few lines, in an environment that has nothing else."""
    folder = tmp_path_factory.mktemp("engine")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    main, _ = serve("tiny_engine")
    shutil.copytree(main, folder / "workers")
    (folder / "workers" / "tiny_engine.py").write_text(ENGINE)
    return [str(folder / "venv" / "bin" / "python"), str(folder / "workers"), "tiny_engine"]


def test_an_answer_comes_with_progress_peak_memory_and_a_log(command: list[str], tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    log = tmp_path / "engine.log"
    with WorkerProcess("tiny", command, clean_variables(), log, lambda *told: seen.append(told)) as worker:
        assert worker.ask("add", a=2, b=3) == 5
        assert worker.ask("prefix") == str(Path(command[0]).parents[1])
        assert seen == [(1, 2, "adding")]
        assert 1 << 20 < worker.peak_memory < 1 << 30
    assert "said on standard output" in log.read_text()


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (("fail",), "tiny failed to fail: ValueError: no such layer"),
        (("end", {"code": 3}), "its process ended with code 3\n    last words"),
        (("die",), "its process was killed, as the system does when memory is exhausted"),
    ],
)
def test_a_failure_is_one_clear_error(
    command: list[str], request_: tuple[str, dict[str, int]] | tuple[str], what: str
) -> None:
    name, *arguments = request_
    with WorkerProcess("tiny", command, clean_variables()) as worker:
        with pytest.raises(QuantgateError) as error:
            worker.ask(name, **(arguments[0] if arguments else {}))
        assert what in str(error.value)


def test_silence_ends_it(command: list[str]) -> None:
    worker = WorkerProcess("tiny", command, clean_variables(), silence=1.0)
    with worker, pytest.raises(QuantgateError, match="said nothing for 1 seconds and was ended"):
        worker.ask("wait")


def test_no_worker_survives_whoever_started_it(command: list[str]) -> None:
    code = "import sys; from pipelines.core.processes import *; "
    code += "WorkerProcess('tiny', sys.argv[1:], clean_variables()).ask('wait')"
    parent = subprocess.Popen([sys.executable, "-c", code, *command])
    workers: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while not workers and time.monotonic() < deadline:
        workers = psutil.Process(parent.pid).children()
        time.sleep(0.1)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (
            ["quantize.engine=modelopt"],
            "engine modelopt does not do gptq with W4A16 here, but rtn: FP8_TENSOR, NVFP4, W8A8_STATIC; awq: W4A16",
        ),
        (["quantize.engine=gptqmodel", "quantize.smoothquant=0.5"], "engine gptqmodel takes no smoothquant here"),
        (["quantize.engine=autogptq"], "Input should be 'quantgate', 'gptqmodel', 'modelopt'"),
        (["quantize.method=rtn", "quantize.scheme=FP8_TENSOR"], "FP8_TENSOR is quantized by engine modelopt only"),
    ],
)
def test_what_an_engine_does_not_do_is_refused(overrides: list[str], what: str) -> None:
    with pytest.raises(BadInput, match=what):
        load_recipe("int4-gptq", ["quantize.group_size=null", *overrides])


def test_locks_hold_a_digest_for_every_package_and_no_torch() -> None:
    for build in (isolated.ENVIRONMENTS[name].builds["cpu"] for name in ENGINES):
        assert build.lock
        lines = (isolated.LOCKS / build.lock).read_text().splitlines()
        packages = [number for number, line in enumerate(lines) if "==" in line and not line.startswith((" ", "#"))]
        assert len(packages) > 30
        assert all(lines[number + 1].strip().startswith("--hash=sha256:") for number in packages)
        assert not [
            lines[number] for number in packages if lines[number].startswith(("torch=", "triton=", "nvidia-cu"))
        ]


def test_what_gptqmodels_awq_would_stumble_over_is_refused(tiny: Path) -> None:
    with pytest.raises(BadInput, match=r"clips 64 output features at a time, and .* has 32"):
        plan_checkpoint(load_recipe("awq-gptqmodel", ["quantize.group_size=32"]), tiny)


@pytest.mark.parametrize(("overrides", "copies"), [([], 3), (["export=autoawq"], 4)])
def test_the_plan_counts_what_lies_on_disk_on_the_way(tiny: Path, overrides: list[str], copies: int) -> None:
    """The artifact in the cache and where it is published, what the engine wrote, and what is not repacked yet."""
    plan = plan_checkpoint(load_recipe("gptq-gptqmodel", ["quantize.group_size=32", *overrides]), tiny)
    logprobs = 8 * 512 // 2 * VOCABULARY * 2  # of held-out text, two bytes each
    needed = sum(need.needed for need in plan.needs if need.resource == "disk")
    assert needed == copies * plan.bytes_after + logprobs


def test_auto_gptq_without_cuda_is_refused_with_a_way_on(wide: Path, cli: Cli) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    refused = cli("plan", "gptq-autogptq", "--model", wide, "--set", "quantize.group_size=32")
    assert refused.returncode == 2
    assert "auto-gptq quantizes on CUDA only, which this machine has not" in refused.stderr
    assert "--experimental-cpu" in refused.stderr
    assert "recipes gptq-gptqmodel and int4-gptq need no GPU" in refused.stderr
    on = cli("plan", "gptq-autogptq", "--model", wide, "--set", "quantize.group_size=32", "--experimental-cpu")
    assert on.returncode == 0, on.stderr
    stray = cli("plan", "int4-gptq", "--model", wide, "--experimental-cpu")
    assert "experimental_cpu is for engine auto-gptq; quantgate runs on a CPU as it is" in stray.stderr


def test_engines_without_maintainers_are_refused_what_they_do_not_do(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"autoawq quantizes every linear module of every layer, and .*layers\.0"):
        plan_checkpoint(load_recipe("awq-autoawq", [*SMALL_GROUPS, "quantize.ignore=[lm_head, 'layer:0']"]), wide)
    other = Path(shutil.copytree(wide, tmp_path / "olmo"))
    edit_json(other / "config.json", model_type="olmo")
    with pytest.raises(BadInput, match="is a olmo model"):
        plan_checkpoint(load_recipe("awq-autoawq", SMALL_GROUPS), other)


@pytest.mark.parametrize(("scheme", "engine"), [("NF4", "bitsandbytes"), ("W8A8_STATIC", "modelopt")])
def test_a_scheme_of_one_engine_names_it(scheme: str, engine: str) -> None:
    with pytest.raises(BadInput, match=f"{scheme} is quantized by engine {engine} only"):
        load_recipe("fp8", [f"quantize.scheme={scheme}"])


# bitsandbytes, which shares our environment


@pytest.fixture(scope="module")
def nf4(wide: Path) -> CheckpointArtifact:
    return quantize(plan_checkpoint(load_recipe("bnb-nf4", ["quantize.ignore=[lm_head, 'layer:0']"]), wide))


def test_nf4_is_what_the_plan_says(nf4: CheckpointArtifact) -> None:
    seen = verify(nf4, "cpu")
    assert seen.quantized == 21
    assert seen.bytes_after == nf4.plan.bytes_after
    assert min(layer.sqnr for layer in seen.layers) > 18
    assert nf4.written.engine == f"bitsandbytes {version('bitsandbytes')}"


def test_transformers_loads_nf4_as_it_is(nf4: CheckpointArtifact) -> None:
    """Its own reading of the file, with bitsandbytes' layers, against ours: the same weights, multiplied its way."""
    ids = torch.arange(5, 45)[None]
    theirs = AutoModelForCausalLM.from_pretrained(nf4.checkpoint, dtype="auto", device_map="cpu")
    kinds = {type(module).__name__ for module in theirs.modules()}
    assert "Linear4bit" in kinds
    ours = load_for_inference(nf4.checkpoint, "cpu")
    layer = theirs.model.layers[1].mlp.down_proj
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert torch.equal(weight, ours.model.layers[1].mlp.down_proj.weight)
    with torch.inference_mode():
        logits = [model(ids).logits.float().log_softmax(-1) for model in (theirs, ours)]
    assert (logits[0] - logits[1]).abs().max() < 0.1


# The engines


@pytest.fixture(scope="module")
def uneven(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `wide`, with columns as different as those of trained weights, so that there is something to smooth."""
    folder = Path(shutil.copytree(wide, tmp_path_factory.mktemp("checkpoints") / "uneven"))
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            weight.mul_(torch.randn(weight.shape[1], generator=generator).mul(0.7).exp())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def engines(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their environments are those of the user's own cache, made there unless they are."""
    own = (cache / "wheels").resolve().parent
    with monkeypatch.context() as patch:
        patch.setenv("QUANTGATE_CACHE", str(own))
        for name in ENGINES:
            isolated.make(name)
    if not (cache / "environments").exists():
        (cache / "environments").symlink_to(own / "environments")


def made(recipe: str, model: Path, *overrides: str) -> CheckpointArtifact:
    chosen = load_recipe(recipe, ["calibrate.samples=8", "calibrate.seq_len=128", *overrides])
    return quantize(plan_checkpoint(chosen, model))


@pytest.mark.engines
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.usefixtures("engines")
def test_an_engine_makes_what_the_plan_says(recipe: str, wide: Path) -> None:
    """Verify compares every tensor with the plan, every kept one with the source, and lets the artifact speak."""
    left = "quantize.ignore=[lm_head, 'layer:0']" if "-auto" not in recipe else "quantize.ignore=[lm_head]"
    artifact = made(recipe, wide, *RECIPES[recipe], left)
    seen = verify(artifact, "cpu")
    assert seen.quantized == (21 if "layer:0" in left else 28)
    assert seen.bytes_after == artifact.plan.bytes_after
    assert min(layer.sqnr for layer in seen.layers) > (25 if "fp8" in recipe else 12)
    assert artifact.written.engine.startswith(artifact.recipe.engine)
    config = json.loads((artifact.checkpoint / "config.json").read_text())["quantization_config"]
    assert "/" not in json.dumps(config.get("meta", {})), "no path of this machine travels with it"
    assert not (artifact.folder / "raw").exists()


@pytest.mark.engines
@pytest.mark.parametrize(
    ("recipe", "kind"),
    [(recipe, kind) for recipe, engine in ENGINE_OF.items() for kind in DESCRIBED[engine].known_models],
)
@pytest.mark.usefixtures("engines")
def test_engines_without_maintainers_quantize_the_models_the_plan_lets_them(
    recipe: str, kind: str, tmp_path: Path
) -> None:
    settings = {**ALL_HEADS, **(UNTIED if kind == "llama" else {})}
    model = write_model(tmp_path / kind, kind, "bfloat16", None, **settings)
    artifact = quantize(plan_checkpoint(load_recipe(recipe, [*RECIPES[recipe], *write_text(tmp_path)]), model))
    seen = verify(artifact, "cpu")
    assert seen.quantized == 21
    assert min(layer.sqnr for layer in seen.layers) > 12
    assert seen.loss_after == pytest.approx(seen.loss_before, rel=0.1)


@pytest.mark.engines
@pytest.mark.parametrize(
    ("recipe", "most"),
    [("int8-sq-modelopt", 0.03), ("int4-awq-modelopt", 0.2), ("awq-gptqmodel", 0.2), ("awq-autoawq", 0.2)],
)
@pytest.mark.usefixtures("engines")
def test_what_smoothing_scaled_multiplies_out(recipe: str, most: float, uneven: Path) -> None:
    """Weight times the factor that is stored with it, or that the norm before it got, is the source's weight."""
    artifact = made(recipe, uneven, *RECIPES[recipe])
    source, target = (load_file(folder / "model.safetensors") for folder in (uneven, artifact.checkpoint))
    for name, module in artifact.plan.quantized.items():
        weight = source[f"{name}.weight"].float()
        parts = {suffix: target[f"{name}.{suffix}"] for suffix in module.parts}
        assert module.form
        stored = dequantize(*unpack(parts, module.form, module.shape[1]))
        layer, _, inside = name.rpartition(".")[0].rpartition(".")
        norm = f"{layer}.{'input' if inside == 'self_attn' else 'post_attention'}_layernorm.weight"
        if module.scales_input:
            factors = parts["pre_quant_scale"].float()
        elif name.endswith(("o_proj", "down_proj", "v_proj", "up_proj")):
            continue  # whose rows may be scaled as well, or columns by those
        else:
            factors = target[norm].float() / source[norm].float()
            assert factors.std() > 0.01, "AWQ scaled something"
        assert (stored * factors - weight).norm() < most * weight.norm()


@pytest.mark.engines
@pytest.mark.usefixtures("engines")
def test_an_engines_result_read_back_as_compressed_tensors_computes_the_same(tiny: Path) -> None:
    ids = torch.arange(40)[None]
    own = made("gptq-gptqmodel", tiny, "quantize.group_size=32")
    back = made("gptq-gptqmodel", tiny, "quantize.group_size=32", "export=autoawq")
    with torch.inference_mode():
        logits = [load_for_inference(artifact.checkpoint, "cpu")(ids).logits for artifact in (own, back)]
    assert torch.equal(*logits)
