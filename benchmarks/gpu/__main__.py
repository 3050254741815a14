"""Measures the GPU path on the GPU at hand: the time of each operation, its floor, and the time of peers.

    python -m benchmarks.gpu [--sections ceilings,experts] [--kinds int8,bf16] [--tokens 1,8,64] [--json FILE]
                             [--peer NAME=module:function]

It needs torch, triton, numpy and safetensors, and no network: weights are random, in the shape of Mixtral 8x7B. Every
run measures the ceilings (a streaming read, a matrix product, a copy from pinned memory). The floor of an operation is
the time that its reads and products take at these rates. Every kernel is first compared with float64.

A peer is a function (x [T, H], ids [T, k], weights [T, k], layer) -> [T, H] for one layer's experts in bfloat16. In it
layer.gate_up and layer.down are the E views of one tensor each; its result includes the residual x.

All sections take three calls of less than ten minutes each on an H100. Figures are written after each section, so that
a call that is cut off loses only the last one. The second call writes the table of tile sizes; the third measures the
experts again, with those:

    timeout 300 python -m pytest tests/gpu --ignore tests/gpu/test_compile.py
    python -m benchmarks.gpu --sections kernels,attention,experts --json 1.json

    python -m benchmarks.gpu.tune --seconds 540 --log tuned.jsonl

    python -m benchmarks.gpu --sections steps,host,generate,load,experts --json 2.json

Without a CUDA device, everything runs once in Triton's interpreter, in a small size. This shows that the command works;
its times mean nothing, and no file is written.
"""

import argparse
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from benchmarks.gpu.run import ExpertsPeer, Run

CEILINGS = "ceilings"  # every run measures them, because floors need them
FUNCTIONS = {  # section -> where it is measured; a module is imported when its section's turn comes
    "kernels": "benchmarks.gpu.kernels:measure",
    "experts": "benchmarks.gpu.experts:measure",
    "attention": "benchmarks.gpu.attention:measure",
    "steps": "benchmarks.gpu.steps:measure",
    "host": "benchmarks.gpu.engine:measure_host",
    "generate": "benchmarks.gpu.engine:measure_generate",
    "load": "benchmarks.gpu.load:measure",
}
SECTIONS = (CEILINGS, *FUNCTIONS)


def main() -> int:
    arguments = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # triton reads it when it is first imported, below
    run = begin(device, arguments)
    written = None if device.type == "cpu" else arguments.json
    for section in arguments.sections:
        if section != CEILINGS:
            with run.attempt(section):
                _function(FUNCTIONS[section])(run)
            run.forget()
        if written is not None:
            written.write_text(json.dumps(run.document(), indent=2) + "\n", encoding="utf-8")
    print(run.markdown())
    return 1 if run.failures or any(not check.passed for check in run.checks) else 0


def begin(device: torch.device, arguments: argparse.Namespace) -> "Run":
    """Imports the peers and measures the ceilings. Raises SystemExit for what cannot be measured."""
    from benchmarks.gpu import run as gpu_run

    peers: dict[str, ExpertsPeer] = {name: _peer(place) for name, place in arguments.peer}
    return gpu_run.begin(device, arguments.kinds, arguments.tokens, peers)


def _peer(place: str) -> Any:
    try:
        return _function(place)
    except (ImportError, KeyError, ValueError) as error:
        raise SystemExit(f"The peer {place} cannot be imported ({error!r}): name it as module:function.") from error


def _function(place: str) -> Any:
    """Imports module:function."""
    module, _, function = place.partition(":")
    return import_module(module).__dict__[function]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Measures the GPU path.")
    parser.add_argument(
        "--sections",
        type=_sections,
        default=SECTIONS,
        metavar="LIST",
        help=f"some of {','.join(SECTIONS)} (default: all)",
    )
    parser.add_argument("--kinds", type=_names, metavar="LIST", help="kinds of weights, as int8,bf16 (default: all)")
    parser.add_argument("--tokens", type=_counts, metavar="LIST", help="tokens of a step, as 1,8 (default: 1 to 256)")
    parser.add_argument(
        "--peer",
        type=_named,
        action="append",
        default=[],
        metavar="NAME=module:function",
        help="measure this function beside ours",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _counts(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _sections(text: str) -> tuple[str, ...]:
    if unknown := [name for name in _names(text) if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"there is no section {', '.join(unknown)}")
    return _names(text)


def _named(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not (name and equals and ":" in place):
        raise argparse.ArgumentTypeError("a peer is given as NAME=module:function")
    return name, place


if __name__ == "__main__":
    sys.exit(main())
