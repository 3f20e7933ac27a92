"""The figures of hardware that decide how fast a model is served: bandwidth, operations by type, memory. They are data
with their sources, but for those of this machine's processor, which are measured.

Operations are dense, of matrix units, as makers publish them; what is reached of them is in `roofline`.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import psutil
from pydantic import Field

from pipelines.core import progress
from pipelines.core.cache import Result, keep
from pipelines.core.device import has_cuda, processor
from pipelines.core.errors import BadInput, bad_input, did_you_mean
from pipelines.core.strict_yaml import Frozen
from pipelines.serving.loads import Named, Place

Numbers = Literal["16 bits", "INT8", "FP8", "FP4"]
"""Type of the numbers that matrix units multiply."""
SYSTEMS = "aiconfigurator 0.12.0, aic-core/src/aiconfigurator_core/systems/*.yaml"
ADA = "NVIDIA's Ada GPU architecture whitepaper, as waredb.com/processor/nvidia-geforce-rtx-4090 quotes it"
MI300X = "github.com/alpharomercoma/MI300X-vs-H200, METHODOLOGY.md at 6077fdc, after AMD's data sheet"
GIB = 1 << 30


class Hardware(Frozen):
    """One accelerator, or the processor of this machine."""

    name: str
    capability: float | None = None
    """NVIDIA's compute capability; None where it is no GPU of NVIDIA."""
    bandwidth: float
    """Bytes a second that its memory gives."""
    operations: dict[Numbers, float]
    """Type of numbers → operations a second; a type that it has no units for, or of which no source tells, is left
    out."""
    memory: int
    """Bytes."""
    source: str = Field(repr=False)

    @property
    def is_cpu(self) -> bool:
        """Whether it is a processor and no GPU."""
        return self.name == CPU

    @property
    def place(self) -> Place:
        """Name of it in the table of what loads where."""
        return self.capability if self.capability is not None else cast("Named", self.name)


CPU = "cpu"


def _gpu(
    name: str,
    capability: float | None,
    gigabytes: float,
    teras: tuple[float, float | None, float | None, float | None],
    memory: int,
    source: str = SYSTEMS,
) -> Hardware:
    """Return a GPU of GB/s, tera-operations in 16 bits, INT8, FP8 and FP4, and GiB."""
    kinds: tuple[Numbers, ...] = ("16 bits", "INT8", "FP8", "FP4")
    return Hardware(
        name=name,
        capability=capability,
        bandwidth=gigabytes * 1e9,
        operations={kind: tera * 1e12 for kind, tera in zip(kinds, teras, strict=True) if tera},
        memory=memory * GIB,
        source=source,
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("A100", 8.0, 2039, (312, 624, None, None), 80),
        _gpu("A100-PCIE", 8.0, 1935, (312, 624, None, None), 80),
        _gpu("A30", 8.0, 933, (165, 330, None, None), 24),
        _gpu("L4", 8.9, 300, (121, 242, 242, None), 24),
        _gpu("L40S", 8.9, 864, (362, 733, 733, None), 45),
        _gpu("RTX4090", 8.9, 1008, (165.2, 660.6, 330.3, None), 24, ADA),
        _gpu("H100", 9.0, 3350, (989, 1978, 1978, None), 80),
        _gpu("H200", 9.0, 4800, (989, 1978, 1978, None), 141),
        _gpu("B200", 10.0, 7700, (2250, 4500, 4500, 9000), 180),
        _gpu("GB300", 10.3, 8000, (2500, 165, 5000, 15000), 278),
        _gpu("RTX-PRO-6000", 12.0, 1792, (468, 936, 936, 1871), 96),
        _gpu("MI300", None, 5300, (1307.4, None, 2614.9, None), 192, MI300X),
    )
}
"""GPUs by the names that `--hardware` takes. H100 and A100 are the SXM boards, MI300 is the MI300X; FP8 of an RTX 4090
is with sums in 32 bits, as inference wants them."""
DRIVERS = {
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA A100-SXM4-40GB": "A100",
    "NVIDIA A100 80GB PCIe": "A100-PCIE",
    "NVIDIA A30": "A30",
    "NVIDIA L4": "L4",
    "NVIDIA L40S": "L40S",
    "NVIDIA GeForce RTX 4090": "RTX4090",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H200": "H200",
    "NVIDIA B200": "B200",
    "NVIDIA GB300": "GB300",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX-PRO-6000",
    "AMD Instinct MI300X": "MI300",
}
"""Name that a driver gives a GPU → its name here. Boards of like names (H100 PCIe, L40) have other figures."""


def find_hardware(name: str | None) -> Hardware:
    """Return the hardware called `name`, whatever its case; of none, this machine's GPU, or its processor.

    Raises:
        BadInput: nothing is known of it here.
    """
    if name is None:
        return _this_gpu() if has_cuda() else this_processor()
    known = {_plain(one): one for one in (*GPUS, CPU)}
    if found := known.get(_plain(name)):
        return this_processor() if found == CPU else GPUS[found]
    raise _unknown(f"--hardware {name}", did_you_mean(name, known.values()))


def _unknown(where: str, hint: str = "") -> BadInput:
    remedy = f"known are {', '.join((*GPUS, CPU))}"
    return bad_input(where, "nothing is known of its bandwidth and operations", f"{hint} {remedy}".strip())


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _this_gpu() -> Hardware:
    import torch

    found = named_by_driver(torch.cuda.get_device_name())
    return found.model_copy(update={"memory": torch.cuda.get_device_properties(0).total_memory})


def named_by_driver(name: str) -> Hardware:
    """Return the GPU whose driver calls it `name`, such as `NVIDIA H100 80GB HBM3`.

    Raises:
        BadInput: it is none of those that are known.
    """
    if name not in DRIVERS:
        raise _unknown(f"this machine's {name}", "give --hardware with the one that is most like it:")
    return GPUS[DRIVERS[name]]


PROBE_SECONDS = 0.3
PROBE_BYTES = 256 << 20
"""Bytes that the probe of bandwidth reads: more than caches hold."""
PROBE_WIDTH = 1024


class _Speed(Result):
    """The speed of a processor, as probes measured it."""

    bandwidth: float
    operations: float


def this_processor() -> Hardware:
    """Return the processor of this machine: its bandwidth and its operations are measured, once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    inputs = {"processor": processor(), "cores": cores, "threads": os.environ.get("OMP_NUM_THREADS")}

    def make(_: Path) -> dict[str, float]:
        with progress.status("measuring how fast this machine reads and computes (a second, once) …"):
            return _probe()

    speed = keep("probe-hardware", inputs, _Speed, make)
    return Hardware(
        name=CPU,
        bandwidth=speed.bandwidth,
        operations={"16 bits": speed.operations},
        memory=psutil.virtual_memory().total,
        source=f"a probe of this machine ({processor()})",
    )


def _probe() -> dict[str, float]:
    """Return the bytes a second of reading memory, and the operations a second of float32 products."""
    import torch

    numbers = torch.ones(PROBE_BYTES // 4)
    square = torch.ones(PROBE_WIDTH, PROBE_WIDTH)
    return {
        "bandwidth": PROBE_BYTES / _seconds(numbers.sum),
        "operations": 2.0 * PROBE_WIDTH**3 / _seconds(lambda: square @ square),
    }


def _seconds(work: Callable[[], Any]) -> float:
    """Return how many seconds `work` takes at best, tried for a moment."""
    work()
    best, end = float("inf"), time.perf_counter() + PROBE_SECONDS
    while (start := time.perf_counter()) < end:
        work()
        best = min(best, time.perf_counter() - start)
    return best
