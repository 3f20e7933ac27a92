"""What aiconfigurator says of the same question: NVIDIA's model of served models, from kernels that it measured.

It runs in an environment of its own and is told the types of weights and cache, for of a checkpoint's own config it
reads the first group only, and takes every 4-bit float for weights alone. It has no figures of INT4 and INT8 in vLLM
and TensorRT-LLM, nor of processors. Of blocks of FP8 it is not asked: there it says a fifth of the speed of 16 bits.
0.12.0 is the last of this name; its successor is called aisimulate.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from pipelines.core.errors import bad_input
from pipelines.core.processes import WorkerProcess, clean_variables
from pipelines.core.strict_yaml import Frozen
from pipelines.environments import isolated
from pipelines.formats.schemes import SchemeName
from pipelines.serving.hardware import Hardware
from pipelines.serving.loads import Runtime
from pipelines.serving.roofline import Traffic

NAME = "aiconfigurator"
SYSTEMS = {
    "A100": "a100_sxm",
    "A100-PCIE": "a100_pcie",
    "A30": "a30",
    "L4": "l4",
    "L40S": "l40s",
    "H100": "h100_sxm",
    "H200": "h200_sxm",
    "B200": "b200_sxm",
    "GB300": "gb300",
    "RTX-PRO-6000": "rtx_pro_6000_server",
}
"""Hardware → its name there."""
BACKENDS: dict[Runtime, str] = {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "trtllm"}
MODES: dict[SchemeName | None, str] = {
    None: "bfloat16",
    "FP8_DYNAMIC": "fp8",
    "FP8_STATIC": "fp8_static",
    "FP8_TENSOR": "fp8_static",
    "NVFP4": "nvfp4",
    "W4A16": "int4_wo",
    "W4A16_ASYM": "int4_wo",
    "W8A16": "int8_wo",
    "W8A8": "sq",
    "W8A8_STATIC": "sq",
}
"""Scheme → the name of products with such weights there; None for 16 bits."""


class Question(Frozen):
    """What is asked about: weights that a runtime serves."""

    runtime: Runtime
    scheme: SchemeName | None
    """Scheme of the weights; None for 16 bits."""
    fp8_cache: bool
    gpus: int


class Opinion(Frozen):
    """The answer to a question."""

    tokens_per_second: float | None = None
    """Tokens written a second by all requests together, for each GPU; None where it has no answer."""
    why: str = ""
    """Reason why there is none."""


def check_known(hardware: Hardware) -> None:
    """Raise `BadInput` for hardware that aiconfigurator knows nothing of."""
    if hardware.name not in SYSTEMS:
        what = f"knows nothing of {hardware.name}"
        raise bad_input(f"--ask {NAME}", what, f"leave it out; it knows {', '.join(SYSTEMS)}")


def ask(model: Path, hardware: Hardware, traffic: Traffic, questions: Sequence[Question]) -> tuple[Opinion, ...]:
    """Return its answers on the checkpoint in the folder `model`, one for each question.

    Raises:
        BadInput: it knows nothing of the hardware.
        QuantgateError: it could not be installed, or ended.
    """
    check_known(hardware)
    points = {number: _point(model, hardware, traffic, one) for number, one in enumerate(questions) if _has_mode(one)}
    command = [str(isolated.make(NAME)), *isolated.serve("aiconfigurator_estimates")]
    with WorkerProcess(NAME, command, clean_variables()) as worker:
        answers = dict(zip(points, worker.ask("estimate", points=[*points.values()]), strict=True))
    none = Opinion(why="not asked, it has no figures of such weights, or none to be trusted")
    return tuple(_opinion(answers[number]) if number in points else none for number in range(len(questions)))


def _has_mode(question: Question) -> bool:
    return question.scheme in MODES and question.runtime in BACKENDS


def _point(model: Path, hardware: Hardware, traffic: Traffic, question: Question) -> dict[str, str | int]:
    """Return a question in its words (`aiconfigurator.cli.api.cli_estimate`)."""
    return {
        "model_path": str(model),
        "system_name": SYSTEMS[hardware.name],
        "backend_name": BACKENDS[question.runtime],
        "batch_size": traffic.concurrency,
        "isl": traffic.read,
        "osl": traffic.written,
        "tp_size": question.gpus,
        "gemm_quant_mode": MODES[question.scheme],
        "kvcache_quant_mode": "fp8" if question.fp8_cache else "bfloat16",
    }


def _opinion(answer: dict[str, float | str]) -> Opinion:
    if "why" not in answer:
        return Opinion(tokens_per_second=float(answer["tokens_per_second"]))
    why = str(answer["why"])
    missing = re.search(r"perf data missing for quant '(\w+)'", why)
    return Opinion(why=f"it has no figures of {missing[1]} there" if missing else why)
