"""Scores texts with a model through the engine's own steps, and compares the scores with those of fp32."""

from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from octavo.engine.api import SamplingParams
from octavo.engine.compute.tensors import to_forward_batch
from octavo.engine.schedule.batch import Batch, Row
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache

HELD_OUT = Path(__file__).with_name("held_out.txt")
TOPICS = ("yield", "naming", "exceptions", "import", "floating", "try", "with", "comparisons", "typesseq")
WINDOW = 1024  # tokens of one sequence
CHUNK = 256  # tokens of one step; later ones find the earlier ones' keys in the cache
KEPT = 8  # every eighth token's logits are compared
BLOCK = 16


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


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures are what a weight type costs."""

    bytes_per_weight: float
    texts: dict[str, Quality]
