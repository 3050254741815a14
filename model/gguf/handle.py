"""Gives the tensors of GGUF files under a checkpoint's names, through mmap, as an open file of safetensors does."""

import mmap
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from octavo.model.config_file import ModelError
from octavo.model.gguf.architectures import architecture_of
from octavo.model.gguf.blocks import BLOCKS, PLAIN
from octavo.model.gguf.config import config_of
from octavo.model.gguf.file import GgufModel
from octavo.model.gguf.names import Piece, pieces

WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class Header:
    """A Header says what `get_tensor` returns."""

    piece: Piece

    def get_dtype(self) -> str:
        return self.piece.stored.type.name if self.piece.stored.type in PLAIN else "U8"

    def get_shape(self) -> list[int]:
        return list(self.piece.shape if self.piece.stored.type in PLAIN else _blocks_shape(self.piece))


@dataclass(frozen=True, slots=True, eq=False)
class GgufHandle:
    """A GgufHandle is a model's files, opened; nothing is read from them until a tensor is.

    A quantised matrix X.weight is there as X.blocks [out, blocks, bytes].
    """

    pieces: Mapping[str, Piece]  # by the names that `keys` returns
    memory: Mapping[Path, Tensor]  # the bytes of each file

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens the files, which stay open while a tensor of them lives. Raises ModelError."""
        model = GgufModel.read(path)
        architecture = architecture_of(model)
        found = pieces(model, architecture, config_of(model, architecture))
        named = {_key(name, piece): piece for name, piece in found.items()}
        return cls(named, {each: _mapped(each) for each in model.paths})

    def keys(self) -> list[str]:
        return list(self.pieces)

    def get_slice(self, name: str) -> Header:
        return Header(self.pieces[name])

    def get_tensor(self, name: str) -> Tensor:
        """Returns a tensor, as a view of the file unless its rows lie in pairs."""
        piece = self.pieces[name]
        data = self.memory[piece.stored.path][piece.offset : piece.offset + piece.size]
        dtype = PLAIN.get(piece.stored.type)
        tensor = data.view(_blocks_shape(piece)) if dtype is None else data.view(dtype).view(piece.shape)
        return tensor if not piece.heads else tensor[_order(piece)]


def _key(name: str, piece: Piece) -> str:
    return name if piece.stored.type in PLAIN else name.removesuffix(WEIGHT) + BLOCKS


def _blocks_shape(piece: Piece) -> tuple[int, int, int]:
    """Returns [out, blocks, bytes] of a quantised matrix; a vector is a matrix of one row."""
    kind = piece.stored.type
    return prod(piece.shape[:-1]), piece.shape[-1] // kind.weights, kind.bytes


def _order(piece: Piece) -> Tensor:
    """Returns which rows of the file are those of the checkpoint, one after the other.

    llama.cpp rotates neighbouring rows together and a checkpoint those that are half a head apart, so that a head's
    rows 0 4 1 5 2 6 3 7 of a checkpoint are those from the first to the last of a file.
    """
    return torch.arange(piece.shape[0]).view(piece.heads, -1, 2).transpose(1, 2).flatten()


def _mapped(path: Path) -> Tensor:
    """Returns the bytes of a file. Raises ModelError."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); give the path of a GGUF file.") from None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # Nobody writes to weights.
        return torch.frombuffer(mapped, dtype=torch.uint8)
