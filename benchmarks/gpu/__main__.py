"""The GPU path on the GPU at hand: what each operation takes, beside its floor and beside others.

    python -m benchmarks.gpu [--sections ceilings,experts] [--kinds int8,bf16] [--tokens 1,8,64] [--json FILE]
                             [--peer NAME=module:function]

It needs torch, triton, numpy and safetensors, and nothing from a network: weights are random, of the shape of Mixtral
8x7B. The ceilings (a streaming read, a matrix product, a copy from pinned memory) are measured in every run; a floor is
what an operation must read and multiply, at those. Every kernel is first compared with float64.

A peer is a function (x [T, H], ids [T, k], weights [T, k], layer) -> [T, H] for one layer's experts in bfloat16, with
layer.gate_up and layer.down the E views of one tensor each; what it returns has x added.

Everything, in three calls that are meant to take less than ten minutes each on an H100. Figures are written after each
section, so that a call which is cut off loses the last one alone. The second call writes the table of tile sizes, and
after the third one the experts were measured before and with those:

    timeout 300 python -m pytest tests/gpu --ignore tests/gpu/test_compile.py
    python -m benchmarks.gpu --sections kernels,attention,experts --json 1.json

    python -m benchmarks.gpu.tune --seconds 540 --log tuned.jsonl

    python -m benchmarks.gpu --sections steps,host,generate,load,experts --json 2.json

Where there is no CUDA device, everything runs once in Triton's interpreter, in a size that it gets through. That shows
that the command works; its times mean nothing, and no file is written.
"""

import argparse
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from benchmarks.gpu.run import Peer, Run

CEILINGS = "ceilings"  # are measured in any case: floors are at their rates
SECTIONS = (CEILINGS, "kernels", "experts", "attention", "steps", "host", "generate", "load")


def main() -> int:
    arguments = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported, which is below
    run = begin(device, arguments)
    written = None if device.type == "cpu" else arguments.json
    for section in arguments.sections:
        if section != CEILINGS:
            with run.attempt(section):
                import_module(f"benchmarks.gpu.{section}").measure(run)
            run.forget()
        if written is not None:
            written.write_text(json.dumps(run.document(), indent=2) + "\n", encoding="utf-8")
    print(run.markdown())
    return 1 if run.failures or any(not check.passed for check in run.checks) else 0


def begin(device: torch.device, arguments: argparse.Namespace) -> "Run":
    """Raises SystemExit for what cannot be measured."""
    from benchmarks.gpu import run as gpu_run

    peers = {name: _peer(place) for name, place in arguments.peer}
    return gpu_run.begin(device, arguments.kinds, arguments.tokens, peers)


def _peer(place: str) -> "Peer":
    module, _, function = place.partition(":")
    try:
        peer: Peer = import_module(module).__dict__[function]
    except (ImportError, KeyError, ValueError) as error:
        raise SystemExit(f"The peer {place} cannot be imported ({error!r}): name it as module:function.") from error
    return peer


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Measures the GPU path.")
    parser.add_argument(
        "--sections", type=_sections, default=SECTIONS, metavar="LIST", help=f"of {','.join(SECTIONS)} (default: all)"
    )
    parser.add_argument("--kinds", type=_names, metavar="LIST", help="of weights, as int8,bf16 (default: all)")
    parser.add_argument("--tokens", type=_counts, metavar="LIST", help="of a step, as 1,8,64 (default: 1 to 256)")
    parser.add_argument(
        "--peer",
        type=_named,
        action="append",
        default=[],
        metavar="NAME=module:function",
        help="measure it beside ours",
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
