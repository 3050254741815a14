"""Writes a model's weights into a tile file, extent by extent, from a checkpoint or from a model in memory."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from octavo import __version__
from octavo.model.config import ModelConfig, ModelError
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import Backend
from octavo.model.loading.assembly import LayerWeights, layer_weights, outer_vectors
from octavo.model.loading.checkpoint import Loader
from octavo.model.loading.forms import contents_of, form_of, precision_form
from octavo.model.loading.names import LayerNames, Matrix, Names, tile_names
from octavo.model.loading.reader import Reader
from octavo.model.loading.shards import Shards
from octavo.model.loading.upload import Upload
from octavo.model.prepared.source import Source
from octavo.model.prepared.tile_file import Identity
from octavo.model.prepared.writer import Partial, disk_full
from octavo.model.weights.forms import Weight
from octavo.model.weights.precision import Precision

Pieces = Mapping[str, Weight]
Report = Callable[[str, int, int], None]  # is called with the name of the work, what is done, and all of it


@dataclass(frozen=True, slots=True)
class Job:
    """A Job makes the pieces of one extent; several jobs may run at once."""

    extent: str
    make: Callable[[], Pieces]


@dataclass(frozen=True, slots=True)
class Order:
    """An Order says what to write, and where to."""

    target: Path
    variant: str
    source: Source
    report: Report = lambda what, done, total: None
    threads: int = 1


def write_checkpoint(order: Order, config: ModelConfig, backend: Backend, precision: Precision) -> None:
    """Reads a checkpoint and writes its tile file; few matrices are held at a time. Raises ModelError.

    The caller has the lock of the target.
    """
    with ExitStack() as stack:
        shards = Shards.open(Path(order.source.directory), stack)
        loader = Loader(config, Reader.of(shards), backend, precision, _zeros, Upload(backend.device))
        source = loader.names()
        tied = source.head is source.embedding and precision.has_plain_linears
        jobs = _jobs(_InCheckpoint(loader, source), tile_names(config, tied))
        _write(order, _identity(order, precision, tied), list(jobs))


def write_model(order: Order, model: Decoder) -> None:
    """Writes the tile file of a model that is in memory. Raises ModelError. The caller has the lock of the target."""
    tied = model.head is model.embedding.table
    jobs = _jobs(_InMemory(model), tile_names(model.config, tied))
    _write(order, _identity(order, model.precision, tied), list(jobs))


def _identity(order: Order, precision: Precision, tied: bool) -> Identity:
    return Identity(order.variant, precision_form(precision), tied, order.source, __version__)


def _write(order: Order, identity: Identity, jobs: list[Job]) -> None:
    """Writes what an interrupted run has not written yet. When the disk is full, nothing is left behind."""
    try:
        with Partial(order.target, identity) as unfinished:
            try:
                _fill(unfinished, order, jobs)
                unfinished.publish(_hashed(order))
            except OSError:
                unfinished.discard()
                raise
    except OSError as error:
        raise disk_full(error, order.target) or error from None


def _fill(unfinished: Partial, order: Order, jobs: list[Job]) -> None:
    """Makes the extents in threads, a few ahead, and writes them in order."""
    there = {extent.name for extent in unfinished.extents}
    pending: deque[tuple[str, Future[Pieces]]] = deque()
    left = [job for job in jobs if job.extent not in there]

    def write_oldest() -> None:
        name, future = pending.popleft()
        unfinished.add(name, [(piece, form_of(held), contents_of(held)) for piece, held in future.result().items()])
        order.report("preparing weights", len(unfinished.extents), len(jobs))

    with ThreadPoolExecutor(order.threads) as pool:
        for job in left:
            pending.append((job.extent, pool.submit(job.make)))
            if len(pending) > order.threads:
                write_oldest()
        while pending:
            write_oldest()


def _hashed(order: Order) -> Source:
    """Returns the source with hashes of its contents. Raises ModelError if it has changed meanwhile."""
    total, done = order.source.size, 0

    def hashed(count: int) -> None:
        nonlocal done
        done += count
        order.report("hashing the checkpoint", done, total)

    source = order.source.with_contents(hashed)
    now = Source.of(Path(source.directory))
    change = "it is gone" if now is None else source.change(now)
    if change:
        raise ModelError(f"The checkpoint in {source.directory} changed while it was read ({change}); try again.")
    return source


class _Holder(Protocol):
    """A _Holder has the weights of a model, or makes them when it is asked."""

    def embedding(self) -> Tensor: ...

    def head(self) -> Weight: ...

    def vectors(self) -> Mapping[str, Tensor]:
        """Returns the tensors outside of layers that tokens are not multiplied with."""

    def resident(self, n: int) -> LayerWeights:
        """Returns what every token needs of a layer, with the experts or without."""

    def expert(self, n: int, e: int) -> tuple[Weight, Weight]:
        """Returns gate_up and down of an expert."""


def _jobs(holder: _Holder, tiles: Names) -> Iterator[Job]:
    """Yields the extents of a tile file in its order."""
    yield Job("embedding", lambda: {tiles.embedding.name: holder.embedding()})
    if tiles.head is not tiles.embedding:
        yield Job("head", lambda: {tiles.head.name: holder.head()})
    yield Job("norm", lambda: _named(tiles.vectors, holder.vectors()))
    for n, names in enumerate(tiles.layers):
        yield Job(f"layers.{n}", partial(_resident, holder, names, n))
    for n, names in enumerate(tiles.layers):
        for e in range(len(names.gate_up)):
            yield Job(f"layers.{n}.experts.{e}", partial(_expert, holder, names, n, e))


def _named(names: Mapping[str, Matrix], vectors: Mapping[str, Tensor]) -> dict[str, Weight]:
    """Returns vectors under the names of their pieces."""
    return {names[name][0].name: vector for name, vector in vectors.items()}


def _resident(holder: _Holder, names: LayerNames, n: int) -> Pieces:
    held = holder.resident(n)
    pieces = _named(names.vectors, held.vectors) | {names.qkv[0].name: held.qkv, names.o[0].name: held.o}
    if names.shared is not None and held.shared is not None:
        pieces |= {matrix[0].name: weight for matrix, weight in zip(names.shared, held.shared, strict=True)}
    return pieces


def _expert(holder: _Holder, names: LayerNames, n: int, e: int) -> Pieces:
    gate_up, down = holder.expert(n, e)
    return {names.gate_up[e][0].name: gate_up, names.down[e][0].name: down}


@dataclass(frozen=True, slots=True)
class _InCheckpoint:
    """Reads and quantises each weight when it is asked for."""

    loader: Loader
    names: Names

    def embedding(self) -> Tensor:
        return self.loader.table(self.names.embedding)

    def head(self) -> Weight:
        return self.loader.head(self.names.head)

    def vectors(self) -> Mapping[str, Tensor]:
        return self.loader.vectors(self.names.vectors)

    def resident(self, n: int) -> LayerWeights:
        return self.loader.layer(replace(self.names.layers[n], gate_up=(), down=()))

    def expert(self, n: int, e: int) -> tuple[Weight, Weight]:
        whole = self.names.layers[n]
        names = replace(whole, gate_up=whole.gate_up[e : e + 1], down=whole.down[e : e + 1])
        gate_up, down = self.loader.experts(names, self.loader.staging(*names.gate_up, *names.down))
        return gate_up[0], down[0]


@dataclass(frozen=True, slots=True)
class _InMemory:
    """Has the weights of a model that serves."""

    model: Decoder

    def embedding(self) -> Tensor:
        return self.model.embedding.table

    def head(self) -> Weight:
        return self.model.head

    def vectors(self) -> Mapping[str, Tensor]:
        return outer_vectors(self.model)

    def resident(self, n: int) -> LayerWeights:
        return layer_weights(self.model.layers[n])

    def expert(self, n: int, e: int) -> tuple[Weight, Weight]:
        experts = self.model.layers[n].moe.experts
        return experts.gate_up[e], experts.down[e]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocates a matrix that is freed as soon as it is written."""
    return torch.zeros(shape, dtype=dtype)
