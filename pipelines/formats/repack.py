"""The same codes, scales and zero points in another packing (`pipelines.formats.packings`), exactly, or not at all.

A weight's codes are (rows = output features, columns = input features) as in `pipelines.formats.rounding`: int8 from -8
to 7 for INT4, whose zero points run from -8 to 7, too. gptq and awq count both from 0 to 15.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from pipelines.checkpoint.headers import INDEX, Checkpoint
from pipelines.checkpoint.writer import SafetensorsWriter, as_bytes, write_index
from pipelines.core import progress
from pipelines.core.errors import QuantgateError
from pipelines.formats import rounding
from pipelines.formats.bits import compact, pack_words, unpack_words
from pipelines.formats.description import Scales
from pipelines.formats.packings import WORD, Form, layout
from pipelines.formats.schemes import SCHEMES

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Numbers of the eight neighbouring outputs in the first, second, … four bits of a word (AutoAWQ's GEMM kernels)."""
LOWEST = -8
"""Code and zero point that gptq and awq call 0."""

Parts = Mapping[str, torch.Tensor]
"""Stored tensors of one module by suffix."""


def pack(codes: torch.Tensor, scales: Scales, form: Form, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the tensors that `form` stores for INT4 codes, or for any codes where it is compressed-tensors'.

    `dtype` is that of compressed-tensors' scales; gptq and awq store float16.

    Raises:
        QuantgateError: they cannot be stored exactly.
    """
    if form.packing == "compressed-tensors":
        check_exact(scales.scale, dtype)
        return {**rounding.pack(codes, scales, form.scheme, dtype), "weight_shape": torch.tensor(codes.shape)}
    check_exact(scales.scale, torch.float16)
    zero = torch.zeros_like(scales.scale) if scales.zero is None else scales.zero
    words = {"scales": compact(scales.scale.T.half())}
    if form.packing == "awq":
        ordered = (_order(codes.T), _order(zero.T.to(torch.int8)))
        return {"qweight": pack_words(ordered[0], 4), "qzeros": pack_words(ordered[1], 4), **words}
    assert form.packing == "gptq"
    if (zero == LOWEST).any():
        raise QuantgateError(
            "a zero point is 0, which a gptq checkpoint stores as one less and cannot: export autoawq can"
        )
    return {
        "qweight": compact(pack_words(codes, 4).T),
        "qzeros": pack_words((zero - 1).T.to(torch.int8), 4),
        "g_idx": _groups_in_order(codes.shape[1], scales.group_size),
        **words,
    }


def unpack(parts: Parts, form: Form, columns: int) -> tuple[torch.Tensor, Scales]:
    """Return codes and scales of a whole module; the inverse of `pack`, and for modelopt's FP8 and NVFP4, too.

    Only compressed-tensors' integers need to be told their `columns`, whose last word may be padded.

    Raises:
        QuantgateError: its columns are not in the order of their groups, or its zero points are not what `form` says.
    """
    numbers = SCHEMES[form.scheme].weights
    if form.packing in ("compressed-tensors", "bitsandbytes"):
        return rounding.unpack(parts, form.scheme, form.group_size, columns)
    if form.packing == "modelopt" and form.scheme == "W4A16":
        codes = _unpack_outputs(parts["weight"])
        return codes, Scales(numbers, form.group_size, parts["weight_scale"].float())
    if form.packing == "modelopt":
        return rounding.unpack(as_compressed_tensors(parts, form), form.scheme, form.group_size, columns)
    if form.packing == "awq":
        codes, zero = _restore(parts["qweight"]).T, _restore(parts["qzeros"]).T
    else:
        if not torch.equal(parts["g_idx"].cpu(), _groups_in_order(WORD * len(parts["qweight"]), form.group_size)):
            raise QuantgateError("the order of its columns is another (act-order), which no other packing can hold")
        codes = unpack_words(parts["qweight"].T, 4)
        zero = _one_more(unpack_words(parts["qzeros"], 4)).T
    spread: torch.Tensor | None = zero.float()
    if numbers.symmetric:
        if zero.any():
            raise QuantgateError("says that it is symmetric, but has zero points other than 8")
        spread = None
    return compact(codes), Scales(numbers, form.group_size, parts["scales"].T.float(), zero=spread)


def as_compressed_tensors(parts: Parts, form: Form) -> dict[str, torch.Tensor]:
    """Return a module of a modelopt checkpoint under compressed-tensors' names: which divides where modelopt
    multiplies, and has a scale for each row."""
    if form.scheme in ("FP8_TENSOR", "W8A8_STATIC"):
        scale = parts["weight_scale"].reshape(-1, 1).expand(parts["weight"].shape[0], 1)
        return {**parts, "weight_scale": scale}
    return {
        "weight_packed": parts["weight"],
        "weight_scale": parts["weight_scale"],
        "weight_global_scale": 1 / parts["weight_scale_2"].float().reshape(1),
        "input_global_scale": 1 / parts["input_scale"],
    }


def _unpack_outputs(packed: torch.Tensor) -> torch.Tensor:
    """Return uint8 (rows / 2, columns), whose low four bits are the even rows', as int8 codes (rows, columns)."""
    codes = torch.stack([packed & 0xF, packed >> 4], dim=1).flatten(0, 1).to(torch.int8)
    return (codes ^ 8) - 8  # two's complement


def _groups_in_order(columns: int, group_size: int | None) -> torch.Tensor:
    """Return the group that each column is in, int32 (columns,)."""
    assert group_size
    return torch.arange(columns, dtype=torch.int32) // group_size


def _one_more(zero: torch.Tensor) -> torch.Tensor:
    """Return v1's zero points as they are meant; its 15 means 16, which nothing else can hold."""
    if (zero == -LOWEST - 1).any():
        raise QuantgateError("has a zero point of 16, which only a gptq checkpoint can hold")
    return zero + 1


def _order(values: torch.Tensor) -> torch.Tensor:
    """Return the columns of int8 `values`, every eight of them as AWQ orders them."""
    return values.reshape(len(values), -1, WORD)[..., AWQ_ORDER].flatten(1)


def _restore(words: torch.Tensor) -> torch.Tensor:
    """Return the values of packed `words` in their own order."""
    back = sorted(range(WORD), key=AWQ_ORDER.__getitem__)
    return unpack_words(words, 4).reshape(len(words), -1, WORD)[..., back].flatten(1)


def check_exact(scale: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise QuantgateError unless `dtype` holds every number of `scale`."""
    stored = scale.to(dtype).float()
    if not torch.equal(stored, scale.float()):
        worst = scale[stored != scale.float()].abs().amin()
        raise QuantgateError(f"a scale of {worst:.3g} cannot be held exactly in {str(dtype).removeprefix('torch.')}")


def repack(
    source: Checkpoint, modules: Mapping[str, tuple[int, ...]], dtype: str, before: Form, after: Form, folder: Path
) -> None:
    """Write `source` into `folder`, with its `modules` (name → shape), which are stored as `before`, stored as `after`.

    `dtype` is that of compressed-tensors' scales. Weight files (and their index) only; one module is in memory at a
    time.

    Raises:
        QuantgateError: a module cannot be stored exactly.
    """
    old = {
        name: layout(before.packing, before.scheme, shape, dtype, before.group_size) for name, shape in modules.items()
    }
    new = {name: layout(after.packing, after.scheme, shape, dtype, after.group_size) for name, shape in modules.items()}
    sizes: dict[str, list[tuple[str, int]]] = {}
    for file in source.weight_files:
        stored = {tensor.name: tensor for tensor in source.tensors if tensor.file == file}
        parts = {f"{name}.{suffix}" for name in modules for suffix in old[name]}
        moved = sorted({name.rpartition(".")[0] for name in stored.keys() & parts})
        outputs = {name: (tensor.dtype, tensor.shape) for name, tensor in stored.items() if name not in parts}
        outputs |= {f"{name}.{suffix}": part for name in moved for suffix, part in new[name].items()}
        with safe_open(source.folder / file, "pt") as read, SafetensorsWriter(folder / file, outputs) as writer:
            for name in stored.keys() - parts:
                writer.write(name, as_bytes(read.get_tensor(name)))
            for name in progress.track(moved, "repack", "layer"):
                tensors = {suffix: read.get_tensor(f"{name}.{suffix}") for suffix in old[name]}
                try:
                    packed = pack(*unpack(tensors, before, modules[name][1]), after, rounding.DTYPES[dtype])
                except QuantgateError as error:
                    raise QuantgateError(f"{name} cannot be stored as {after.packing}: {error}") from None
                for suffix in new[name]:
                    writer.write(f"{name}.{suffix}", as_bytes(packed[suffix]))
            sizes[file] = [*writer.sizes.items()]
    if len(sizes) > 1 or (source.folder / INDEX).is_file():
        write_index(folder, sizes)
