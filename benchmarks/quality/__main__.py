"""Measures what weight types cost in quality: `python -m benchmarks.quality --help`.

Perplexity and logits on two texts are compared with those of the same model in float32, through the engine's own steps.
One text is prose, code and letters written for this (held_out.txt). The other is Python's documentation, which models
have seen.

With --peers the formats of llama.cpp and ik_llama.cpp are measured, too. Their own llama-quantize rounds the weights,
and the same code evaluates them. Everything that is compared with them finds its inputs in the same random order.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.common.figures import table_head, table_line
from benchmarks.common.llama_programs import IK_LLAMA_CPP, LLAMA_CPP, obtain, version
from benchmarks.common.machine import describe, user_cache
from benchmarks.quality.checkpoint_formats import CHECKPOINT_FORMATS
from benchmarks.quality.peer_formats import PEER_FORMATS, Programs
from benchmarks.quality.plot import draw
from benchmarks.quality.scores import Figures, Quality, score, texts
from benchmarks.quality.weight_types import OWN, load_as, make
from octavo.engine.config import TOKENIZER
from octavo.model.demo.default_model import default_directory
from octavo.model.kernels.cpu.library import library


def measure(directory: Path, tokens: int, names: Sequence[str], programs: Programs) -> Iterator[tuple[str, Figures]]:
    """Yields the figures of float32 and of each weight type, when they are known."""
    given = texts(Tokenizer.from_file(str(directory / TOKENIZER)), tokens)
    exact = {text: score(load_as(directory, "float32", "none"), ids) for text, ids in given.items()}
    yield "fp32", Figures(4.0, {text: Quality.of(scores, scores) for text, scores in exact.items()})
    for name in names:
        rounded = make(directory, name, programs)
        found = {text: Quality.of(score(rounded.model, ids), exact[text]) for text, ids in given.items()}
        yield name, Figures(rounded.bytes_per_weight, found)


def _lines(name: str, figures: Figures) -> Iterator[str]:
    for text, quality in figures.texts.items():
        yield table_line(
            name,
            f"{figures.bytes_per_weight:.3f}",
            text,
            f"{quality.perplexity:.4f}",
            f"{quality.increase:+.3%} ± {quality.uncertainty:.3%}",
            f"{quality.logit_rms:.2%}",
            f"{quality.logit_most:.1%}",
        )


def main() -> None:
    arguments = _arguments()
    machine = describe()
    names = arguments.weights or [*OWN, *CHECKPOINT_FORMATS, *(PEER_FORMATS if arguments.peers else ())]
    given = {LLAMA_CPP: arguments.llama_cpp, IK_LLAMA_CPP: arguments.ik_llama_cpp}
    needed = {PEER_FORMATS[name].project for name in names if name in PEER_FORMATS}
    programs = {project: obtain(project, given[project], user_cache()) for project in given if project in needed}
    columns = (
        "weights",
        "bytes of an expert's weight",
        "text",
        "perplexity",
        "increase",
        "logit error: rms",
        "largest",
    )
    print(*table_head(*columns), sep="\n")
    found = {}
    for name, figures in measure(arguments.directory, arguments.tokens, names, programs):
        found[name] = figures
        print(*_lines(name, figures), sep="\n", flush=True)
    if arguments.output:
        kernels = library()
        document = {
            "machine": machine | {"kernels": None if kernels is None else kernels.level},
            "programs": {project.name: version(project, path) for project, path in programs.items()},
            "model": arguments.directory.name,
            "tokens": arguments.tokens,
            "bytes_per_weight": {name: figures.bytes_per_weight for name, figures in found.items()},
            "quality": {name: asdict(figures)["texts"] for name, figures in found.items()},
        }
        arguments.output.write_text(json.dumps(document, indent=2) + "\n")
    if arguments.plot:
        draw(found, arguments.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description="Measures what weight types cost in quality."
    )
    default = default_directory(user_cache())
    parser.add_argument("directory", nargs="?", type=Path, default=default, help="a model (default: the default model)")
    parser.add_argument("--tokens", type=int, default=4096, metavar="N", help="tokens of each text (default: 4096)")
    names = (*OWN, *CHECKPOINT_FORMATS, *PEER_FORMATS)
    parser.add_argument(
        "--weights", nargs="+", choices=names, help="the weight types to measure (default: Octavo's own)"
    )
    parser.add_argument("--peers", action="store_true", help="measure the peers' formats, too")
    for project in (LLAMA_CPP, IK_LLAMA_CPP):
        parser.add_argument(project.flag, type=Path, metavar="DIR", help="where it was built (default: it is built)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures to this file as JSON, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the increase over bytes, as .svg or .png")
    return parser.parse_args()


if __name__ == "__main__":
    main()
