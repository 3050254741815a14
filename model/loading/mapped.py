"""Makes a Decoder of a tile file: its weights are the file's pages, which all processes share and none may write to."""

import mmap
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import Backend
from octavo.model.loading.assembly import LayerWeights, assemble
from octavo.model.loading.forms import precision_form, weight_from
from octavo.model.loading.names import LayerNames, Matrix, TensorSlice, tile_names
from octavo.model.prepared.tile_file import Piece, TileFile, Unusable
from octavo.model.weights.forms import Weight
from octavo.model.weights.precision import Precision
from octavo.model.weights.reserve import POPULATE_READ, populate
from octavo.model.weights.tiles import TiledWeight

STEP = 64 << 20  # bytes that the system is asked for at once


def map_model(
    file: TileFile, config: ModelConfig, backend: Backend, precision: Precision, fetched: bool = False
) -> Decoder:
    """Maps a tile file as a model on a CPU; nothing is read yet. Raises Unusable if it is not this model.

    With `fetched`, a thread reads what is not in memory yet, so that no step waits for single pages.
    """
    if file.identity.precision != precision_form(precision):
        raise Unusable("its weights are held in another way than this version of Octavo holds them")
    supply = _Mapped(config, backend, precision, _memory(file.map()), _pieces(file))
    names = tile_names(config, file.identity.tied)
    try:
        if names.shapes().keys() != supply.pieces.keys() or file.identity.tied > config.tie_word_embeddings:
            raise KeyError("the pieces have other names")
        model = assemble(supply, names, threads=1)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise Unusable("its matrices are not those that config.json asks for") from error
    if fetched:
        fetch(supply.memory)
    return model


def fetch(memory: Tensor) -> threading.Thread:
    """Lets a thread bring mapped memory into this process's tables, from the disk if need be, and returns it."""
    thread = threading.Thread(target=_populate, args=(memory,), name="fetch", daemon=True)
    thread.start()
    return thread


@dataclass(frozen=True, slots=True)
class _Mapped:
    """Takes weights from mapped memory, if they are such as the kernels expect: those do not look again."""

    config: ModelConfig
    backend: Backend
    precision: Precision
    memory: Tensor  # [n] uint8, read-only
    pieces: dict[str, Piece]

    def table(self, source: TensorSlice) -> Tensor:
        weight = self._weight(source)
        if not isinstance(weight, Tensor):
            raise TypeError(f"{source.name} is no plain tensor")
        return weight

    def head(self, source: TensorSlice) -> Weight:
        return self._matrix((source,))

    def vectors(self, names: Mapping[str, Matrix]) -> dict[str, Tensor]:
        return {name: self._vector(source) for name, (source,) in names.items()}

    def _vector(self, source: TensorSlice) -> Tensor:
        vector = self.table(source)
        if vector.dtype != self.precision.activations:
            raise TypeError(f"{source.name} has another type than activations")
        return vector

    def layer(self, names: LayerNames) -> LayerWeights:
        shared = names.shared
        return LayerWeights(
            self.vectors(names.vectors),
            qkv=self._matrix(names.qkv),
            o=self._matrix(names.o),
            gate_up=tuple(self._matrix(matrix, paired=True) for matrix in names.gate_up),
            down=tuple(map(self._matrix, names.down)),
            shared=None if shared is None else (self._matrix(shared[0], paired=True), self._matrix(shared[1])),
        )

    def _matrix(self, matrix: Matrix, paired: bool = False) -> Weight:
        (source,) = matrix
        weight = self._weight(source)
        plain = (self.precision.activations, self.precision.linears, self.precision.experts)
        if isinstance(weight, Tensor) and weight.dtype not in plain:
            raise TypeError(f"{source.name} has another type than activations")
        if isinstance(weight, TiledWeight) and (weight.layout.interleaved != paired or weight.terms not in (1, 2)):
            raise ValueError(f"{source.name} lies in another way")
        return weight

    def _weight(self, source: TensorSlice) -> Weight:
        piece = self.pieces[source.name]
        if tuple(piece.form["shape"]) != source.shape:
            raise ValueError(f"{source.name} has another shape")
        return weight_from(piece.form, self.memory[piece.offset : piece.offset + piece.size])


def _pieces(file: TileFile) -> dict[str, Piece]:
    return {piece.name: piece for extent in file.extents for piece in extent.pieces}


def _memory(mapped: mmap.mmap) -> Tensor:
    """Returns a mapped file as a tensor of bytes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # Nobody writes to weights.
        return torch.frombuffer(mapped, dtype=torch.uint8)


def _populate(memory: Tensor) -> None:
    for at in range(0, memory.nbytes, STEP):
        if not populate(memory.data_ptr() + at, min(STEP, memory.nbytes - at), POPULATE_READ):
            return  # an older system: pages come as they are touched
