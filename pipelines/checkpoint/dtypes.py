"""The floating-point types that checkpoints are stored in and that models compute in."""

from typing import get_args

from pipelines.checkpoint.headers import BYTES, FLOAT, Checkpoint
from pipelines.core.device import ComputeDtype, Dtype
from pipelines.core.errors import Problem, bad_input

TORCH_DTYPES = {
    "F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""safetensors' name of a type → PyTorch's."""
NAMES: dict[str, ComputeDtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""safetensors' name of a type that models compute in → PyTorch's."""
SIZES: dict[ComputeDtype, int] = {name: BYTES[stored] for stored, name in NAMES.items()}
"""Bytes of a number of each type that models compute in."""
FREE_SHARE = 0.8
"""Share of the machine's memory for a model in float32; evaluating it needs more beside it."""


def choose_dtype(wanted: Dtype, device: str, checkpoint: Checkpoint) -> ComputeDtype:
    """Return the type that `checkpoint`, and what is made of it, computes in on `device`.

    That is `wanted`, or else float32 on a CPU whose memory holds it, and the checkpoint's own type everywhere else.

    Raises:
        BadInput: there is no such type.
    """
    if wanted not in get_args(Dtype):
        raise bad_input(f"--dtype {wanted}", "is not a type to compute in", f"give {', '.join(get_args(Dtype))}")
    if wanted != "auto":
        return wanted
    return "float32" if device == "cpu" and fits(checkpoint, "float32") else own_dtype(checkpoint)


def fits(checkpoint: Checkpoint, dtype: ComputeDtype, models: int = 1, device: str = "cpu") -> bool:
    """Tell whether the whole memory of `device` (not what happens to be free, so that two runs choose alike) holds
    `models` copies of `checkpoint` in `dtype`."""
    if device == "cpu":
        import psutil

        return models * model_bytes(checkpoint, dtype) < FREE_SHARE * psutil.virtual_memory().total
    import torch

    _, total = torch.cuda.mem_get_info(torch.device(device))
    return models * model_bytes(checkpoint, dtype) < FREE_SHARE * total


def model_bytes(checkpoint: Checkpoint, dtype: ComputeDtype) -> int:
    """Return the bytes of the weights of `checkpoint` in memory, as `dtype`."""
    return sum(tensor.elements * SIZES[dtype] for tensor in checkpoint.tensors)


def own_dtype(checkpoint: Checkpoint) -> ComputeDtype:
    """Return the type that transformers loads `checkpoint` in: the one its config names, else that of most weights."""
    named = named_dtype(checkpoint)
    for name in SIZES:
        if name == named:
            return name
    counts = dict.fromkeys(FLOAT, 0)
    for tensor in checkpoint.tensors:
        if tensor.dtype in counts:
            counts[tensor.dtype] += tensor.elements
    return NAMES[max(counts, key=lambda stored: counts[stored])]


def named_dtype(checkpoint: Checkpoint) -> str | None:
    """Return what config.json calls the type of the weights; None if it says nothing."""
    config = checkpoint.config
    text = config.get("text_config") or {}
    named = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    return named.removeprefix("torch.") if isinstance(named, str) else None


def check_dtype(checkpoint: Checkpoint) -> list[Problem]:
    """Return what is wrong with the type that config.json says that the model computes in."""
    named = named_dtype(checkpoint)
    if named is None or named in SIZES or named == "auto":
        return []
    what = f'"dtype" is {named}, which no model here computes in'
    return [Problem(str(checkpoint.folder / "config.json"), what, f'set "dtype" to one of {", ".join(SIZES)}')]
