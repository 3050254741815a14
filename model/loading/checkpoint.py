"""Streams a checkpoint into a Decoder, tensor by tensor, with nothing left over on either side."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from octavo.model.config import ModelConfig, ModelError
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import Backend
from octavo.model.loading.assembly import LayerWeights, assemble
from octavo.model.loading.names import HEAD_MODULE, LayerNames, Matrix, Names, TensorSlice, names_for
from octavo.model.loading.reader import Reader
from octavo.model.loading.shards import Shards
from octavo.model.loading.takeover import Takeover
from octavo.model.loading.upload import LANES, Upload
from octavo.model.weights.forms import Form, Weight
from octavo.model.weights.fp16 import Fp16Weight, fits_fp16
from octavo.model.weights.kinds import Kind
from octavo.model.weights.memory import Zeros, zeros_on
from octavo.model.weights.precision import Precision
from octavo.model.weights.rounding import kind_for
from octavo.model.weights.row_major import RowMajorWeight
from octavo.model.weights.tiles import TiledWeight, TileLayout

log = logging.getLogger(__name__)

ReportBytes = Callable[[int, int], None]  # bytes read, bytes in all

# The staging buffers of all packing threads may take this share of the finished weights.
STAGING_SHARE = 0.1

# So many int8 numbers stand for each activation that goes into qkv or the head, where single ones are up to 70 times as
# large as their neighbours. On the default model this saves a third of what int8 costs; elsewhere it brings little.
FINE_TERMS = 2

MOST_QUANTISED = 2.0**100  # Sums over larger weights could be infinite.


def load_model(
    directory: Path,
    config: ModelConfig,
    backend: Backend,
    precision: Precision,
    report: ReportBytes = lambda done, total: None,
    zeros: Zeros | None = None,
) -> Decoder:
    """Loads a Decoder onto the backend's device, and quantises as it reads. Raises ModelError.

    report(bytes read, bytes in all) is called on the way, from this thread. `zeros` allocates the memory of quantised
    weights.
    """
    with ExitStack() as stack:
        shards, device = Shards.open(directory, stack), backend.device
        reader = Reader.of(shards)
        loader = Loader(config, reader, backend, precision, zeros or zeros_on(device), Upload(device))
        names = loader.names()
        model = assemble(loader, names, _threads(loader, names), _Progress(reader, report).add)
    if kept := _kept_plain(model):
        log.warning("%d matrices are beyond the range of %s and stay plain tensors", kept, precision.describe())
    return model


@dataclass(frozen=True, slots=True)
class Loader:
    """Builds the pieces of a model; its methods may run on several threads at once."""

    config: ModelConfig
    reader: Reader
    backend: Backend
    precision: Precision
    zeros: Zeros  # for quantised weights and for staging
    upload: Upload

    def names(self) -> Names:
        """Returns where the weights lie. Raises ModelError if these are not all that the files hold."""
        # A head that is stored is used, even where the config says "tied": transformers does so too.
        stored = self.reader.shards.files
        tied = self.config.tie_word_embeddings and not any(name.startswith(HEAD_MODULE) for name in stored)
        names = names_for(self.config, stored, tied)
        self.reader.check({source.name: source for source in names.slices()})
        return names

    @property
    def device(self) -> torch.device:
        return self.backend.device

    @property
    def takeover(self) -> Takeover:
        return Takeover(self.reader, self.device, self.zeros)

    def vectors(self, names: Mapping[str, Matrix]) -> dict[str, Tensor]:
        """Loads small tensors in the dtype of the activations; the slices of each are joined along the last axis."""
        return {name: self._vector(slices) for name, slices in names.items()}

    def _vector(self, slices: Matrix) -> Tensor:
        parts = [self.reader.rows(source) for source in slices]
        for source, part in zip(slices, parts, strict=True):
            _check_finite(part, source)
        return torch.cat(parts, dim=-1).to(self.device, self.precision.activations, copy=True).contiguous()

    def table(self, source: TensorSlice) -> Tensor:
        """Loads the embedding. Its rows are looked up, not multiplied, so 16 bits on disk stay the same 16 bits."""
        if isinstance(self.precision.linears, torch.dtype):
            return self.tensor(source, self.precision.linears)
        stored = self.reader.rows(source)
        _check_finite(stored, source)
        wide = stored.dtype == torch.float32
        return self.tensor(source, torch.float16 if wide and fits_fp16(stored) else stored.dtype)

    def tensor(self, source: TensorSlice, dtype: torch.dtype) -> Tensor:
        out = torch.empty(source.shape, dtype=dtype, device=self.device)
        self._copy(out, (source,))
        return out

    def head(self, source: TensorSlice) -> Weight:
        return self.matrix((source,), self.precision.linears, self.staging((source,)), terms=FINE_TERMS)

    def staging(self, *matrices: Matrix) -> Tensor:
        """Allocates room for the largest of the matrices in float32, if they are packed from that.

        There is one buffer for all, because freed ones would leave holes in the heap among the packed tiles. It lies in
        huge pages, because packing goes down the columns: small pages cost a lookup in the page tables for each weight.
        """
        return self.zeros((self.staged(*matrices),), torch.float32)

    def staged(self, *matrices: Matrix) -> int:
        """Returns how many numbers that buffer holds."""
        return max(math.prod(_shape(matrix)) for matrix in matrices) if self.precision.linears is Fp16Weight else 0

    def matrix(self, matrix: Matrix, form: Form, staging: Tensor, terms: int = 1) -> Weight:
        """Loads one matrix in a form, or as the checkpoint has quantised it."""
        if self.precision.keeps and (taken := self.takeover.matrix(matrix, terms)) is not None:
            return taken
        (weight,) = self.stack((matrix,), form, staging, terms=terms)
        return weight

    def stack(
        self, matrices: Sequence[Matrix], form: Form, staging: Tensor, paired: bool = False, terms: int = 1
    ) -> Sequence[Weight]:
        """Loads matrices of one shape, each packed or all views of one tensor; paired means gate above up."""
        if isinstance(form, torch.dtype):
            return self._plain(matrices, form)
        if isinstance(form, Kind):
            return [self._quantise(matrix, form, paired, terms) for matrix in matrices]
        if issubclass(form, RowMajorWeight):
            return self._row_major(matrices, form)
        return [self._pack(matrix, staging) for matrix in matrices]

    def layer(self, names: LayerNames) -> LayerWeights:
        linears = self.precision.linears
        staging = self.staging(*names.matrices())
        qkv = self.matrix(names.qkv, linears, staging, terms=FINE_TERMS)
        o = self.matrix(names.o, linears, staging)
        gate_up, down = self.experts(names, staging)
        return LayerWeights(self.vectors(names.vectors), qkv, o, gate_up, down, self._shared(names, staging))

    def experts(self, names: LayerNames, staging: Tensor) -> tuple[tuple[Weight, ...], tuple[Weight, ...]]:
        """Loads gate_up and down of the experts of a layer that are named: all, some or none."""
        if not names.gate_up:
            return (), ()
        if self.precision.keeps and (taken := self.takeover.experts(names)) is not None:
            return taken
        upper = self.stack(names.gate_up, self.precision.experts, staging, paired=True)
        form = self.precision.down(names.index, self.config.num_hidden_layers)
        return tuple(upper), tuple(self.stack(names.down, form, staging))

    def _shared(self, names: LayerNames, staging: Tensor) -> tuple[Weight, Weight] | None:
        if names.shared is None:
            return None
        upper, lower = names.shared
        (gate_up,), (down,) = self.experts(replace(names, gate_up=(upper,), down=(lower,)), staging)
        return gate_up, down

    def _plain(self, matrices: Sequence[Matrix], dtype: torch.dtype) -> tuple[Tensor, ...]:
        whole = torch.empty((len(matrices), *_shape(matrices[0])), dtype=dtype, device=self.device)
        for out, matrix in zip(whole, matrices, strict=True):
            self._copy(out, matrix)
        return whole.unbind()

    def _row_major(self, matrices: Sequence[Matrix], kind: type[RowMajorWeight]) -> Sequence[Weight]:
        """Quantises all matrices on the device, piece by piece as they arrive, or loads all as plain tensors."""
        weights = kind.stack(len(matrices), _shape(matrices[0]), self.zeros)
        largest = 0.0
        for weight, matrix in zip(weights, matrices, strict=True):
            for source, first, rows in self._arriving(matrix):
                largest = max(largest, _check_finite(rows, source))
                weight.fill(rows, first)
        return weights if kind.holds(largest) else self._plain(matrices, self.precision.activations)

    def _quantise(self, matrix: Matrix, kind: Kind, paired: bool, terms: int) -> Weight:
        """Quantises straight from the file, slice by slice, so that nothing is held unquantised."""
        stored = [self.reader.rows(source) for source in matrix]
        if max(_check_finite(rows, source) for rows, source in zip(stored, matrix, strict=True)) > MOST_QUANTISED:
            return self._plain((matrix,), self.precision.activations)[0]
        layout = TileLayout(kind_for(stored[0], kind), _shape(matrix), paired)
        weight = TiledWeight.empty(layout, self.zeros, terms)
        first = 0
        for rows in stored:
            self.backend.fill(weight, rows, first)
            first += len(rows)
        return weight

    def _pack(self, matrix: Matrix, staging: Tensor) -> Weight:
        shape = _shape(matrix)
        dense = staging[: math.prod(shape)].view(shape)
        self._copy(dense, matrix)
        return Fp16Weight.pack(dense) if fits_fp16(dense) else dense.clone()

    def _copy(self, out: Tensor, matrix: Matrix) -> None:
        """Copies the slices, one below the other, straight from the file, and converts them on the way."""
        for source, first, stored in self._arriving(matrix):
            rows = out[first : first + len(stored)]
            rows.copy_(stored)
            _check_finite(rows, source)

    def _arriving(self, matrix: Matrix) -> Iterator[tuple[TensorSlice, int, Tensor]]:
        """Yields rows of the matrix on the device, from top to bottom: their slice, the first one's index, the rows."""
        above = 0
        for source in matrix:
            stored = self.reader.rows(source)
            for first, rows in self.upload(stored):
                yield source, above + first, rows
            above += len(stored)


def _kept_plain(model: Decoder) -> int:
    """Counts the matrices that are plain tensors though they were to be packed or quantised."""
    linears, experts = [model.head], []
    for layer in model.layers:
        linears += [layer.attention.qkv, layer.attention.o]
        held = (layer.moe.experts, *([] if layer.moe.shared is None else [layer.moe.shared.experts]))
        experts += [weight for each in held for weight in (*each.gate_up, *each.down)]
    wanted = ((model.precision.linears, linears), (model.precision.experts, experts))
    return sum(isinstance(each, Tensor) for form, held in wanted if not isinstance(form, torch.dtype) for each in held)


def _check_finite(values: Tensor, source: TensorSlice) -> float:
    """Returns the largest magnitude of the values. Raises ModelError for infinities and NaNs."""
    low, high = torch.aminmax(values)  # both are NaN if anything is
    if not (low.isfinite() & high.isfinite()).item():
        dtype = str(values.dtype).removeprefix("torch.")
        raise ModelError(
            f"The tensor {source.name} holds infinities or NaNs in {dtype}; download the checkpoint again, "
            "or use a wider --dtype."
        )
    return max(-low.item(), high.item())


def _shape(matrix: Matrix) -> tuple[int, int]:
    """Returns [out, in] of the slices together."""
    return sum(source.rows for source in matrix), matrix[0].inputs


def _threads(loader: Loader, names: Names) -> int:
    """Returns how many threads load a layer each: as many as torch may use, while their staging buffers stay small."""
    threads = torch.get_num_threads()
    if loader.device.type == "cuda":
        return min(threads, LANES)
    if loader.precision.has_plain_linears:
        return 1
    layer = names.layers[0]
    staging = loader.staged(*layer.matrices()) * torch.float32.itemsize
    room = int(STAGING_SHARE * loader.precision.weight_bytes(loader.config))
    return max(1, min(threads, room // staging)) if staging else threads


class _Progress:
    """Counts the bytes of the files that have been read; a tensor that is used twice counts once."""

    def __init__(self, reader: Reader, report: ReportBytes) -> None:
        shards = reader.shards
        self._reader = reader
        self._pending = {name: shards.stored_bytes(name) for name in shards.files}
        self._total = sum(self._pending.values())
        self._report = report

    def add(self, *slices: TensorSlice) -> None:
        for name in {name for source in slices for name in self._reader.specs(source)}:
            self._pending.pop(name, None)
        self._report(self._total - sum(self._pending.values()), self._total)
