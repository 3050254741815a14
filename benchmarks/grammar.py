"""Measures what a token's mask costs, for random JSON schemas: `python -m benchmarks.grammar [DIRECTORY]`."""

import argparse
import json
import time
from pathlib import Path
from random import Random
from statistics import median, quantiles

import numpy as np

from benchmarks.common.machine import user_cache
from octavo.engine.api import Grammar
from octavo.engine.compute.compiler import Compiler
from octavo.engine.config import TOKENIZER
from octavo.model.demo.default_model import default_directory
from octavo.model.generation_config import GenerationConfig
from tests.engine.compute.random_schemas import random_schema

SCHEMAS = 100
TOKENS = 200  # the most that one output has


def measure(compiler: Compiler, grammar: Grammar, random: Random) -> tuple[float, list[float]]:
    """Returns the seconds to compile, and those of each token: computing its mask, and taking an allowed token in."""
    started = time.perf_counter()
    matcher = compiler.compile(grammar).deep_copy()
    compiling = time.perf_counter() - started
    seconds: list[float] = []
    while len(seconds) < TOKENS and not matcher.is_stopped():
        started = time.perf_counter()
        mask = matcher.compute_bitmask()
        spent = time.perf_counter() - started
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))
        token = int(random.choice(allowed))
        started = time.perf_counter()
        matcher.consume_token(token)
        seconds.append(spent + time.perf_counter() - started)
    return compiling, seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grammar", description="Measures what a token's mask costs, for random JSON schemas."
    )
    default = default_directory(user_cache())
    parser.add_argument("directory", nargs="?", type=Path, default=default, help="a model (default: the default model)")
    directory = parser.parse_args().directory
    compiler = Compiler(directory / TOKENIZER, GenerationConfig.from_pretrained(directory).eos_token_ids)
    random = Random(0)
    found = [measure(compiler, Grammar("json", json.dumps(random_schema(random))), random) for _ in range(SCHEMAS)]
    tokens = [seconds for _, each in found for seconds in each]
    p99 = quantiles(tokens, n=100)[98]
    print(f"{SCHEMAS} schemas, {len(tokens)} tokens, {directory.name}")
    print(f"compile and first mask: median {median(seconds for seconds, _ in found) * 1e3:.2f} ms")
    print(f"a token: median {median(tokens) * 1e6:.0f} us, p99 {p99 * 1e6:.0f} us, most {max(tokens) * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
