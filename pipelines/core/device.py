"""The devices that models run on, and the floating-point types that they compute in there.

What is stored never depends on it. A CPU computes in float32 unless told otherwise: processors without bfloat16 units
multiply bfloat16 several times slower than float32, and bfloat16's own rounding moves near ties of a model and its
artifact apart, which is noise to a gate that judges what quantization changed.
"""

import contextlib
import ctypes
import os
import platform
import re
import sys
from pathlib import Path
from typing import Literal

from pipelines.core.errors import bad_input
from pipelines.core.text import size

ComputeDtype = Literal["float32", "bfloat16", "float16"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Name of the floating-point type that a user asks models to compute in; `auto` leaves the choice to us."""
DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
"""Device files of GPU drivers: NVIDIA's for cards and for boards, that of Linux in Windows, and AMD's."""
NO_ROOM = "give --device cpu, or a GPU with more memory"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers by which glibc knows the free memory to keep at the heap's end, and the size of blocks outside the heap."""


def choose_device(wanted: str | None) -> str:
    """Return `wanted`, or `cuda` where there is one, else `cpu`.

    Raises:
        BadInput: the device is not there.
    """
    import torch

    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted != "cpu" and not (re.fullmatch(r"cuda(:\d+)?", wanted) and torch.cuda.is_available()):
        raise bad_input(f"--device {wanted}", "is not a device of this machine", "leave it out, or use cpu")
    return wanted


def has_cuda() -> bool:
    """Tell whether there is a GPU, without importing torch on a Linux that has no driver of one."""
    if sys.platform == "linux" and not any(Path(driver).exists() for driver in DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


def processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    named = cpu_lines("model name")
    return named[0].split(":", 1)[1].strip() if named else platform.processor() or platform.machine()


def machine() -> dict[str, str]:
    """Return what the machine is, for records: platform, processor, cores, memory, and its GPU if it has one."""
    import psutil

    hardware = {
        "platform": platform.platform(),
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
    }
    if has_cuda():
        import torch

        hardware["gpu"] = torch.cuda.get_device_name()
    return hardware


def cpu_lines(*fields: str) -> list[str]:
    """Return the lines in which Linux tells `fields` of its processors, such as `flags`; none elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return [line for line in lines if line.startswith(fields)]


def default_device() -> str:
    """Return what `choose_device` chooses unless told, without importing torch where that can be known without it."""
    return "cuda" if has_cuda() else "cpu"


def check_room(needed: int, device: str) -> None:
    """Refuse a `device` whose free memory does not hold `needed` bytes of weights.

    Raises:
        BadInput: it does not.
    """
    import torch

    if device == "cpu":
        return
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    if needed > free:
        what = f"has {size(free)} of memory free, and the model's weights take {size(needed)}"
        raise bad_input(f"--device {device}", what, NO_ROOM)


def keep_freed_memory() -> None:
    """Tell glibc to keep up to half a gigabyte of freed memory for what is allocated next.

    Else it hands every large tensor back to the system, which clears its pages anew for the next one: a fifth of the
    time of a small model's forward pass.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        tell = ctypes.CDLL(None).mallopt
        tell(M_MMAP_THRESHOLD, 32 << 20)
        tell(M_TRIM_THRESHOLD, 512 << 20)
