"""Measures what a decode step costs beside reading its weights: `python -m benchmarks.overhead --help`.

Two models have the same small layers, and one is deeper than the other. Their weights fit a processor's cache, so that
reading them costs little. The deeper one's steps are longer by the cost of its further layers. The rest is everything
else that a step does: scheduling, the batch's tensors, head, sampling, outputs.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common.checkpoint import SHAPES, build
from benchmarks.common.engine import LoadedEngine
from benchmarks.common.figures import table_head, table_line
from benchmarks.common.loads import StepEnd
from octavo.server import options

DEPTHS = (8, 40)  # layers
STREAMS = (1, 4, 16)
ROUNDS, PROMPT_TOKENS, TOKENS = 5, 4, 48
SMALL = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead",
        description="Measures what a decode step costs beside reading its weights.",
    )
    options.add_to(parser)
    given = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as directory:
        engines = [_load(Path(directory), depth, given) for depth in DEPTHS]
        print(f"{engines[0].ready.description[0]}; medians over {ROUNDS} rounds")
        print(*table_head("streams", "a layer", "a step beside its layers"), sep="\n")
        for streams in STREAMS:
            layer, rest = split(_medians(engines, streams), DEPTHS)
            print(table_line(f"{streams}", f"{layer * 1e6:.0f} us", f"{rest * 1e6:.0f} us"))


def _medians(engines: Sequence[LoadedEngine], streams: int) -> list[float]:
    """Returns the seconds of each engine's step. They take turns, so that other work on the machine slows both."""
    rounds = [
        [decode_seconds(engine.driver.answer(streams, PROMPT_TOKENS, TOKENS)) for engine in engines]
        for _ in range(ROUNDS)
    ]
    return [median(seconds) for seconds in zip(*rounds, strict=True)]


def _load(directory: Path, depth: int, given: dict[str, Any]) -> LoadedEngine:
    shape = SHAPES["sparse"] | SMALL | {"num_hidden_layers": depth}
    model = str(build(directory / f"{depth}", shape, 0, lambda done, total: None))
    config, _ = options.configure(given, model, model, SMALL["vocab_size"])
    return LoadedEngine.build(config)


def decode_seconds(ends: Sequence[StepEnd]) -> float:
    """Returns the median step of the last three quarters, in which there are no prompts."""
    seconds = [end for end, _ in ends[len(ends) // 4 :]]
    return median(after - before for before, after in zip(seconds, seconds[1:], strict=False))


def split(seconds: Sequence[float], depths: Sequence[int]) -> tuple[float, float]:
    """Returns the seconds of a layer, and those of the rest, from the steps of two depths."""
    layer = (seconds[1] - seconds[0]) / (depths[1] - depths[0])
    return layer, seconds[0] - depths[0] * layer


if __name__ == "__main__":
    main()
