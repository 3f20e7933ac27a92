"""Codes of a few bits, packed into bytes and words and taken out again."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pack_nibbles(codes: "torch.Tensor") -> "torch.Tensor":
    """Return uint8 values 0-15 (rows, columns) as bytes (rows, columns / 2), the first of a pair in the low bits."""
    return codes[:, 0::2] | codes[:, 1::2].bitwise_left_shift(4)


def unpack_nibbles(packed: "torch.Tensor") -> "torch.Tensor":
    """Return the values of bytes (rows, columns / 2) as uint8 (rows, columns): the inverse of `pack_nibbles`."""
    import torch

    return torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(1)


def pack_words(codes: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Return int8 codes (rows, columns) of 4 or 8 bits as int32 (rows, words), offset to be unsigned, the first in the
    low bits; zeros pad the last word."""
    import torch

    unsigned = (codes.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    short = -unsigned.shape[1] % (32 // bits)
    if short:
        unsigned = torch.nn.functional.pad(unsigned, (0, short))
    return compact(pack_nibbles(unsigned) if bits == 4 else unsigned).view(torch.int32)


def unpack_words(words: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Return int32 `words` (rows, words) as int8 codes (rows, columns), those that pad the last word too."""
    import torch

    unsigned = compact(words).view(torch.uint8)
    if bits == 4:
        unsigned = unpack_nibbles(unsigned)
    return (unsigned.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)


def compact(tensor: "torch.Tensor") -> "torch.Tensor":
    """Return a copy, row after row; `contiguous` would leave a single row or column with the strides it came with."""
    import torch

    return tensor.clone(memory_format=torch.contiguous_format)
