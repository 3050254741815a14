"""Measures what weight types cost in quality: `python -m benchmarks.quality --help`.

Perplexity and logits on two texts are compared with those of the same model in float32, through the engine's own steps.
One text is prose, code and letters written for this (held_out.txt). The other is Python's documentation, which models
have seen.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.common.figures import table_head, table_line
from benchmarks.common.machine import describe, user_cache
from octavo.engine.api import SamplingParams
from octavo.engine.compute.tensors import to_forward_batch
from octavo.engine.config import TOKENIZER
from octavo.engine.schedule.batch import Batch, Row
from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder
from octavo.model.demo.default_model import default_directory
from octavo.model.kernels.choice import select_backend
from octavo.model.kernels.cpu.library import library
from octavo.model.kv_cache import KVCache
from octavo.model.loading.checkpoint import load_model
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.precision import Wanted, choose_precision
from octavo.model.weights.row_major import Fp8RowMajor, Int4RowMajor, Int8GroupedRowMajor, Int8RowMajor, RowMajorWeight
from octavo.model.weights.tiles import GroupedWeight, Int4Weight, TileLayout

HELD_OUT = Path(__file__).with_name("held_out.txt")
TOPICS = ("yield", "naming", "exceptions", "import", "floating", "try", "with", "comparisons", "typesseq")
WINDOW = 1024  # tokens of one sequence
CHUNK = 256  # tokens of one step; later ones find the earlier ones' keys in the cache
KEPT = 8  # every eighth token's logits are compared
BLOCK = 16
CPU = torch.device("cpu")
GPU_KINDS: dict[str, type[RowMajorWeight]] = {
    "gpu-int8": Int8RowMajor,
    "gpu-int8-groups": Int8GroupedRowMajor,
    "gpu-fp8": Fp8RowMajor,
    "gpu-int4": Int4RowMajor,
}


@dataclass(frozen=True, slots=True)
class Scores:
    """A Scores holds what a model predicts for a text."""

    losses: Tensor  # [T], in nats, of each next token
    logits: Tensor  # [T / KEPT, V]


@dataclass(frozen=True, slots=True)
class Quality:
    """A Quality compares scores with those of the same model in float32."""

    perplexity: float
    increase: float  # relative increase of the perplexity
    uncertainty: float  # the increase's standard error
    logit_rms: float  # root mean square of the differences, relative to the logits' standard deviation
    logit_most: float  # the largest difference, relative to the same

    @classmethod
    def of(cls, scores: Scores, exact: Scores) -> "Quality":
        lost = (scores.losses - exact.losses).double()
        spread = (exact.logits - exact.logits.mean(-1, keepdim=True)).square().mean().sqrt()
        off = (scores.logits - exact.logits) / spread
        return cls(
            perplexity=scores.losses.double().mean().exp().item(),
            increase=lost.mean().exp().item() - 1,
            uncertainty=(lost.std() / len(lost) ** 0.5).item(),
            logit_rms=off.square().mean().sqrt().item(),
            logit_most=off.abs().max().item(),
        )


def score(model: Decoder, ids: list[int]) -> Scores:
    """Scores each window as a sequence of its own. Its first token is given, and all others are predicted."""
    blocks = tuple(range(WINDOW // BLOCK))
    cache = KVCache.allocate(model.config, len(blocks), BLOCK, model.activation_dtype, model.device)
    losses, logits = [], []
    for begin in range(0, len(ids) - 1, WINDOW):
        window = ids[begin : begin + WINDOW + 1]
        for start in range(0, len(window) - 1, CHUNK):
            targets = tuple(window[start + 1 : start + 1 + CHUNK])
            given = tuple(window[start : start + len(targets)])
            row = Row("text", start, given, blocks, SamplingParams(max_tokens=1), None, targets)
            with torch.inference_mode():
                found = model.forward(to_forward_batch(Batch((row,)), BLOCK, model.device), cache)  # [CHUNK, V]
            losses.append(F.cross_entropy(found, torch.tensor(targets), reduction="none"))
            logits.append(found[::KEPT].clone())
    return Scores(torch.cat(losses), torch.cat(logits))


def texts(tokenizer: Tokenizer, tokens: int) -> dict[str, list[int]]:
    """Returns the first tokens of each text."""
    documentation = "\n".join(topics[topic] for topic in TOPICS)
    whole = {"held out": HELD_OUT.read_text(encoding="utf-8"), "documentation": documentation}
    return {name: tokenizer.encode(text).ids[: tokens + 1] for name, text in whole.items()}


def regroup(model: Decoder) -> None:
    """Rounds the experts of a float32 model to int4 in place, in groups of inputs that are not neighbours.

    The default model's experts were in 4 bits before, in the same groups as in Int4Weight, so int4 finds their grids
    again. For groups drawn at random it must make new grids, as it must for models that come in 16 bits.
    """
    fill: Callable[[GroupedWeight, Tensor, int], None] = GroupedWeight.fill
    if (kernels := library()) is not None:
        fill = kernels.quantise
    for layer in model.layers:
        for dense in (*layer.moe.experts.gate_up, *layer.moe.experts.down):
            assert isinstance(dense, Tensor)
            order = torch.randperm(dense.shape[1], generator=torch.Generator().manual_seed(0))
            weight = Int4Weight.empty(TileLayout((dense.shape[0], dense.shape[1])), zeros_on(CPU))
            fill(weight, dense[:, order].contiguous(), 0)
            dense[:, order] = weight.dense()


def round_experts(model: Decoder, kind: type[RowMajorWeight]) -> None:
    """Rounds the experts of a float32 model in place to what a GPU holds. The arithmetic stays in float32."""
    for layer in model.layers:
        for dense in (*layer.moe.experts.gate_up, *layer.moe.experts.down):
            assert isinstance(dense, Tensor)
            dense.copy_(kind.pack(dense).dense())


def load_as(directory: Path, dtype: str, quantization: str) -> Decoder:
    """Loads the model on the CPU with these flags of `octavo serve`."""
    config = ModelConfig.from_pretrained(directory)
    precision = choose_precision(Wanted(dtype, quantization), config.dtype, CPU, library() is not None)
    return load_model(directory, config, select_backend(config, CPU), precision)


def weight_types(directory: Path) -> dict[str, Callable[[], Decoder]]:
    """Returns a function for each weight type that makes the model in it."""

    def rounded(change: Callable[[Decoder], None]) -> Decoder:
        model = load_as(directory, "float32", "none")
        change(model)
        return model

    return {
        "int4-regrouped": lambda: rounded(regroup),
        "fp16": lambda: load_as(directory, "float16", "none"),
        "int8": lambda: load_as(directory, "auto", "int8"),
        "int4": lambda: load_as(directory, "auto", "int4"),
        **{
            name: lambda kind=kind: rounded(lambda model: round_experts(model, kind))
            for name, kind in GPU_KINDS.items()
        },
    }


def measure(directory: Path, tokens: int, wanted: Sequence[str]) -> dict[str, dict[str, Quality]]:
    """Measures each weight type on each text, and prints each figure when it is known."""
    given = texts(Tokenizer.from_file(str(directory / TOKENIZER)), tokens)
    exact = {name: score(load_as(directory, "float32", "none"), ids) for name, ids in given.items()}
    found = {"fp32": {name: Quality.of(scores, scores) for name, scores in exact.items()}}
    for kind in ("fp32", *wanted):
        if kind not in found:
            model = weight_types(directory)[kind]()
            found[kind] = {name: Quality.of(score(model, ids), exact[name]) for name, ids in given.items()}
        for name, quality in found[kind].items():
            print(_line(kind, name, quality), flush=True)
    return found


def _line(kind: str, text: str, quality: Quality) -> str:
    return table_line(
        kind,
        text,
        f"{quality.perplexity:.4f}",
        f"{quality.increase:+.3%} ± {quality.uncertainty:.3%}",
        f"{quality.logit_rms:.2%}",
        f"{quality.logit_most:.1%}",
    )


def main() -> None:
    arguments = _arguments()
    machine = describe()
    print(*table_head("weights", "text", "perplexity", "increase", "logit error: rms", "largest"), sep="\n")
    found = measure(arguments.directory, arguments.tokens, arguments.weights or list(weight_types(Path())))
    if arguments.output:
        kernels = library()
        document = {
            "machine": machine | {"kernels": None if kernels is None else kernels.level},
            "model": arguments.directory.name,
            "tokens": arguments.tokens,
            "quality": {kind: {name: asdict(each) for name, each in of.items()} for kind, of in found.items()},
        }
        arguments.output.write_text(json.dumps(document, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description="Measures what weight types cost in quality."
    )
    default = default_directory(user_cache())
    parser.add_argument("directory", nargs="?", type=Path, default=default, help="a model (default: the default model)")
    parser.add_argument("--tokens", type=int, default=4096, metavar="N", help="tokens of each text (default: 4096)")
    names = list(weight_types(Path()))
    parser.add_argument("--weights", nargs="+", choices=names, help="the weight types to measure (default: all)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures to this file as JSON, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
