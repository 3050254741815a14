"""EngineConfig: every choice the engine is started with, frozen."""

from dataclasses import dataclass

from octavo.model import config as model

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", *model.DTYPES)
QUANTIZATIONS = model.QUANTIZATIONS
TOKENIZER = "tokenizer.json"  # in the model's directory; what it holds is the API process's business, and llguidance's


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """None means: the engine chooses when it knows the model and the machine. Sizes are in bytes or tokens."""

    model: str  # a local directory with config.json, *.safetensors and so on
    device: str = "auto"  # one of DEVICES
    dtype: str = "auto"  # one of DTYPES
    quantization: str = "auto"  # one of QUANTIZATIONS
    enforce_eager: bool = False  # no CUDA graphs
    batch_invariant: bool = False  # nothing whose rounding depends on who shares the step
    threads: int | None = None  # torch's intra-op threads of the CPU
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_waiting: int = 1024
    watchdog_timeout: int = 300  # seconds that a step may take before the engine is started again; 0: for ever
    block_size: int = 16
    kv_cache_memory: int | None = None  # bytes of KV cache; overrides gpu_memory_utilization
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    sampled_vocab: int | None = None  # ids from here on (padding of the vocabulary) are never sampled
