"""What a decode step costs beside reading its weights: `python -m benchmarks.overhead [flags of octavo serve]`.

Two models of the same small layers, one deeper than the other. Their weights fit a processor's cache, so reading them
costs little: what a step of the deeper one takes longer is the price of its further layers, and the rest is everything
else that a step does (scheduling, the batch's tensors, head, sampling, outputs).
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common.checkpoint import SHAPES, build
from benchmarks.common.engine import Peer
from benchmarks.common.loads import Step
from octavo.server import options

DEPTHS = (8, 40)  # layers
STREAMS = (1, 4, 16)
ROUNDS, TOKENS = 5, 48
SMALL = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 64, "num_attention_heads": 4} | {
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead")
    options.add_to(parser)
    given = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as directory:
        peers = [_peer(Path(directory), depth, given) for depth in DEPTHS]
        print(f"{peers[0].ready.description[0]}; medians over {ROUNDS} rounds")
        print("| streams | a layer | a step beside its layers |")
        print("|---:|---:|---:|")
        for streams in STREAMS:
            # In turns, so that what else the machine does meets both.
            rounds = [[decode_seconds(peer.answer(streams, 4, TOKENS)) for peer in peers] for _ in range(ROUNDS)]
            layer, rest = split([median(times) for times in zip(*rounds, strict=True)], DEPTHS)
            print(f"| {streams} | {layer * 1e6:.0f} us | {rest * 1e6:.0f} us |")


def _peer(directory: Path, depth: int, given: dict[str, Any]) -> Peer:
    shape = SHAPES["sparse"] | SMALL | {"num_hidden_layers": depth}
    model = str(build(directory / f"{depth}", shape, 0, lambda done, total: None))
    config, _ = options.configure(given, model, model, SMALL["vocab_size"])
    return Peer(config)


def decode_seconds(steps: Sequence[Step]) -> float:
    """The median step, without those that prompts were in."""
    ends = [end for end, _ in steps]
    return median(
        after - before for before, after in zip(ends[len(ends) // 4 :], ends[len(ends) // 4 + 1 :], strict=False)
    )


def split(seconds: Sequence[float], depths: Sequence[int]) -> tuple[float, float]:
    """What a layer costs, and what the rest does, given the steps of two depths."""
    layer = (seconds[1] - seconds[0]) / (depths[1] - depths[0])
    return layer, seconds[0] - depths[0] * layer


if __name__ == "__main__":
    main()
