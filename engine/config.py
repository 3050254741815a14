"""EngineConfig holds every choice that an engine is started with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from octavo.model import config as model

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", *model.DTYPES)
QUANTIZATIONS = model.QUANTIZATIONS
PREPARE = ("auto", "never")
TOKENIZER = "tokenizer.json"  # This file of the checkpoint is read by the API process and by llguidance alone.


class ReadsText(Protocol):
    """Reads the text of a file, as a Path does."""

    def read_text(self, encoding: str) -> str:
        """Raises OSError or ValueError."""


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """A TokenizerFile is a checkpoint's tokenizer.json, with the tokens that other files of the checkpoint add."""

    path: Path
    added: tuple[str, ...] = ()  # each a JSON object, as in tokenizer.json's added_tokens

    def read_text(self, encoding: str) -> str:
        """Raises OSError or ValueError."""
        text = self.path.read_text(encoding)
        if not self.added:
            return text
        document = json.loads(text)
        entries = [*document.get("added_tokens", ()), *map(json.loads, self.added)]
        by_id = {entry["id"]: entry for entry in entries}  # one that is added may replace another
        return json.dumps(document | {"added_tokens": [by_id[id] for id in sorted(by_id)]})


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Holds the choices, frozen. Where a value is None, the engine chooses when it knows the model and the machine."""

    model: str  # a local directory with config.json, *.safetensors and so on
    device: str = "auto"  # one of DEVICES
    dtype: str = "auto"  # one of DTYPES
    quantization: str = "auto"  # one of QUANTIZATIONS
    enforce_eager: bool = False  # no CUDA graphs
    batch_invariant: bool = False  # A row is rounded the same whoever shares its step.
    threads: int | None = None  # threads of the CPU that compute one operation
    max_model_len: int | None = None  # tokens of a prompt and its output together
    max_num_seqs: int | None = None  # sequences that run at once
    max_num_batched_tokens: int | None = None  # tokens that a step computes
    max_waiting: int = 1024  # sequences that may wait beside those
    watchdog_timeout: int = 300  # seconds that a step may take before the engine is started again; 0: any time
    block_size: int = 16  # tokens in a block of the KV cache
    kv_cache_memory: int | None = None  # bytes of the KV cache; overrides gpu_memory_utilization
    gpu_memory_utilization: float = 0.9  # share of a GPU's memory for weights, steps and KV cache together
    enable_prefix_caching: bool = True
    added_tokens: tuple[str, ...] = ()  # what a TokenizerFile adds
    prepare: str = "auto"  # one of PREPARE: whether weights that a slow start has quantised are kept as a tile file
    verify: bool = False  # Tile files and their sources are compared by their contents.
    cache: str | None = None  # a directory for what is kept besides checkpoints; None: there is none
    sampled_vocab: int | None = None  # Token ids from here on, which pad the vocabulary, are never sampled.

    @property
    def tokenizer(self) -> TokenizerFile:
        """Returns what grammars are compiled with."""
        return TokenizerFile(Path(self.model) / TOKENIZER, self.added_tokens)
