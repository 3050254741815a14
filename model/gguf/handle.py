"""Gives the tensors of GGUF files under a checkpoint's names, through mmap, as an open file of safetensors does."""

import mmap
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from octavo.model.config_file import ModelError
from octavo.model.gguf.architectures import architecture_of
from octavo.model.gguf.blocks import PLAIN, Blocks
from octavo.model.gguf.config import config_of
from octavo.model.gguf.file import GgufModel
from octavo.model.gguf.names import Piece, pieces


@dataclass(frozen=True, slots=True)
class Header:
    """A Header says what `get_tensor` returns; a quantised tensor is F32."""

    piece: Piece

    def get_dtype(self) -> str:
        return self.piece.stored.type.name if self.piece.stored.type in PLAIN else "F32"

    def get_shape(self) -> list[int]:
        return list(self.piece.shape)


@dataclass(frozen=True, slots=True, eq=False)
class GgufHandle:
    """A GgufHandle is a model's files, opened; nothing is read from them until a tensor is."""

    pieces: Mapping[str, Piece]  # by the names of a checkpoint
    memory: Mapping[Path, Tensor]  # the bytes of each file

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens the files, which stay open while a tensor of them lives. Raises ModelError."""
        model = GgufModel.read(path)
        architecture = architecture_of(model)
        found = pieces(model, architecture, config_of(model, architecture))
        return cls(found, {each: _mapped(each) for each in model.paths})

    def keys(self) -> list[str]:
        return list(self.pieces)

    def get_slice(self, name: str) -> Header:
        return Header(self.pieces[name])

    def get_tensor(self, name: str) -> Tensor:
        """Returns a tensor, plain ones as views of the file, and others in float32."""
        found = self.get_stored(name)
        return found if isinstance(found, Tensor) else found.dense().reshape(self.pieces[name].shape)

    def get_stored(self, name: str) -> Tensor | Blocks:
        """Returns a tensor as it is stored: plain, or the blocks of its rows."""
        piece = self.pieces[name]
        data = self.memory[piece.stored.path][piece.offset : piece.offset + piece.size]
        if (dtype := PLAIN.get(piece.stored.type)) is not None:
            plain = data.view(dtype).view(piece.shape)
            return plain if not piece.heads else plain[_order(piece)]
        blocks = data.view(-1, piece.shape[-1] // piece.stored.type.weights, piece.stored.type.bytes)
        return Blocks(piece.stored.type, blocks if not piece.heads else blocks[_order(piece)])


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
