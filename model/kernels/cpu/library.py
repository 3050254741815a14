"""Loads the compiled kernels as a Library, whose functions take tensors."""

import ctypes
import importlib.machinery
import sys
import threading
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_float, c_int64, c_void_p, sizeof
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.model.kernels.cpu.structs import (
    INTERFACE,
    STRUCTS,
    AttentionStruct,
    ExpertsStruct,
    HeadsStruct,
    PagesStruct,
    PassStruct,
    RotationStruct,
    SourceStruct,
    WeightStruct,
)
from octavo.model.weights.tiles import TiledWeight

Heads = tuple[Tensor, Tensor, Tensor]

OF_PASS = (POINTER(PassStruct), POINTER(RotationStruct), POINTER(PagesStruct))
SIGNATURES: dict[str, tuple[Any, Sequence[Any]]] = {
    "octavo_interface": (c_int64, (c_int64,)),
    "octavo_set_threads": (None, (c_int64,)),
    "octavo_level": (c_int64, ()),
    "octavo_set_level": (c_int64, (c_int64,)),
    "octavo_level_name": (c_char_p, (c_int64,)),
    "octavo_quantise": (None, (POINTER(WeightStruct), POINTER(SourceStruct))),
    "octavo_rms_norm": (None, (c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p)),
    "octavo_linear": (None, (POINTER(WeightStruct), c_void_p, c_int64, c_void_p)),
    "octavo_attention": (None, (POINTER(HeadsStruct), *OF_PASS, c_void_p)),
    "octavo_attention_layer": (None, (POINTER(AttentionStruct), *OF_PASS, c_void_p)),
    "octavo_experts": (None, (POINTER(ExpertsStruct), c_void_p, c_int64, c_void_p, c_void_p, c_void_p)),
    "octavo_experts_layer": (None, (POINTER(ExpertsStruct), c_void_p, c_int64, c_void_p, c_void_p)),
}


class Unfit(Exception):
    """Unfit is raised for compiled kernels of other sources: a call of them could end the process."""


class Library:
    """A Library has the functions of octavo.h. Tensors are contiguous, on the CPU, and outlive the call."""

    def __init__(self, path: Path) -> None:
        """Loads the library. Raises Unfit."""
        self._functions = _load(path)
        self._threads = 0
        self._lock = threading.Lock()
        self._linear = self._functions.octavo_linear
        self._attention = self._functions.octavo_attention
        self._attention_layer = self._functions.octavo_attention_layer
        self._experts = self._functions.octavo_experts
        self._experts_layer = self._functions.octavo_experts_layer

    def follow_torch(self) -> None:
        """Takes as many threads as torch has now. It is called in every forward pass, and mostly only compares."""
        if (threads := torch.get_num_threads()) != self._threads:
            with self._lock:
                self._functions.octavo_set_threads(threads)
                self._threads = threads

    @property
    def level(self) -> str:
        """Returns the name of the instruction set in use."""
        return self.levels()[self._functions.octavo_level()]

    def levels(self) -> list[str]:
        """Returns the names of all compiled instruction sets, the plainest first."""
        names: list[str] = []
        while name := self._functions.octavo_level_name(len(names)).decode():
            names.append(name)
        return names

    def set_level(self, name: str) -> bool:
        """Uses this instruction set from now on; returns whether the machine has it. It is for tests and benchmarks."""
        wanted: int = self.levels().index(name)
        return bool(self._functions.octavo_set_level(wanted) == wanted)

    def quantise(self, weight: TiledWeight, rows: Tensor, first: int) -> None:
        """Does what TiledWeight.fill does, for contiguous rows, on the calling thread and without the GIL."""
        struct = WeightStruct.of(weight)
        for source in SourceStruct.all_of(rows, first, weight.layout):
            self._functions.octavo_quantise(struct, source)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Computes x [T, H] float32 / its root mean square * weight [H] -> [T, H]."""
        out = torch.empty_like(x)
        tokens, hidden = x.shape
        self._functions.octavo_rms_norm(x.data_ptr(), weight.data_ptr(), eps, tokens, hidden, out.data_ptr())
        return out

    def linear(self, x: Tensor, weight: WeightStruct) -> Tensor:
        """Multiplies x [T, in] float32 with weight [out, in] transposed -> [T, out]."""
        out = x.new_empty(x.shape[0], weight.outputs)
        self._linear(weight, x.data_ptr(), x.shape[0], out.data_ptr())
        return out

    def attention(
        self,
        heads: Heads,
        forward: PassStruct,
        rotation: RotationStruct | None,
        pages: PagesStruct,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Computes attention of q [T, Hq, D], k and v [T, Hkv, D] float32 -> [T, Hq * D]; writes k and v to the pages.

        The heads may be views, if the heads of a token lie one after the other. If there is a rotation, q and k are
        first rotated in place. Sinks [Hq] float32 are further scores, one for each query head.
        """
        q, k, v = heads
        out = torch.empty(q.shape[0], q.shape[1] * q.shape[2])
        self._attention(HeadsStruct.of(q, k, v, sinks), forward, rotation, pages, out.data_ptr())
        return out

    def attention_layer(
        self, x: Tensor, attention: AttentionStruct, forward: PassStruct, rotation: RotationStruct, pages: PagesStruct
    ) -> None:
        """Adds o(attention(qkv(norm(x)))) to x [T, H] in place; writes the new keys and values to the pages."""
        self._attention_layer(attention, forward, rotation, pages, x.data_ptr())

    def experts(self, x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertsStruct) -> Tensor:
        """Computes the experts of x [T, H] float32 with ids [T, k] int64 and weights [T, k] float32 -> [T, H]."""
        out = torch.empty_like(x)
        self._experts(experts, x.data_ptr(), x.shape[0], ids.data_ptr(), weights.data_ptr(), out.data_ptr())
        return out

    def experts_layer(self, x: Tensor, experts: ExpertsStruct) -> tuple[Tensor, Tensor]:
        """Adds experts(norm(x)) to x [T, H] in place; returns the router's ids [T, k] int64 and weights [T, k]."""
        ids = torch.empty(x.shape[0], experts.top_k, dtype=torch.int64)
        weights = torch.empty(x.shape[0], experts.top_k)
        self.experts_layer_into(x, experts, (ids.data_ptr(), weights.data_ptr()))
        return ids, weights

    def experts_layer_into(self, x: Tensor, experts: ExpertsStruct, choice: tuple[int, int]) -> None:
        """Does the same, and writes the router's ids and weights to these addresses."""
        self._experts_layer(experts, x.data_ptr(), x.shape[0], *choice)


def _load(path: Path) -> ctypes.CDLL:
    """Loads the functions. Raises Unfit if they were built from an octavo.h with other structs or functions."""
    expected = (INTERFACE, *map(sizeof, STRUCTS), 0)
    try:
        functions = ctypes.CDLL(str(path))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(functions, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:  # The file is for another machine, or lacks a function.
        raise Unfit(str(error)) from error
    if tuple(map(functions.octavo_interface, range(len(expected)))) != expected:
        raise Unfit("its interface is another")
    return functions


@cache
def library() -> Library | None:
    """Returns the kernels; returns None if they were not built, or were built from other sources."""
    path = find()
    try:
        return None if path is None else Library(path)
    except Unfit:
        return None


def why_missing() -> str:
    """Returns why `library` returns None, as a clause about the kernels."""
    return "were not built" if find() is None else "were built from other sources than these"


def how_to_build() -> str:
    """Returns what to do if the kernels were not built, as the end of a sentence."""
    root = Path(__file__).parents[4]
    source = f"--editable {root}" if (root / "pyproject.toml").is_file() else "DIRECTORY-OF-OCTAVO'S-SOURCE"
    command = f"{sys.executable} -m pip install --force-reinstall --no-deps {source}"
    return f"install a C compiler (gcc or clang), then run `{command}`"


def find() -> Path | None:
    """Returns the path of the compiled kernels, which setuptools puts beside this file, or None."""
    here = Path(__file__).parent
    paths = (here / f"_kernels{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)
