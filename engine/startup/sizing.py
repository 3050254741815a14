"""Decides how large everything is made: the flags, held against the model and the machine. It is pure arithmetic."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from octavo.engine.config import EngineConfig
from octavo.model.config import ModelConfig, ModelError
from octavo.model.weights.reserve import PAGE

GIB = 2**30
FLOAT32 = 4  # bytes: the most that a weight takes
# On a CPU with memory for twice as much, the KV cache is half as large as the weights, within these bounds. Taking a
# GiB from the system costs up to a second and a half at start, which a small model should not wait for.
LEAST_CPU_CACHE_BYTES, MOST_CPU_CACHE_BYTES = GIB, 4 * GIB
CPU_MAX_SEQS, GPU_MAX_SEQS = 64, 256
GPU_STEP_TOKENS = 8192
INVARIANT_STEP_TOKENS = 512  # With --batch-invariant, a GPU computes them one by one.
RESERVED = {"auto": 1.0, "int8": 1.0, "int4": 0.5}  # by --quantization: bytes per weight, a little less than it takes
STEP_SECONDS = 0.4  # A full step of new tokens may take this on a CPU; long contexts and sampling come on top.
FEWEST_STEP_TOKENS, MOST_STEP_TOKENS = 16, 2048  # With fewer than 16, a step takes hardly less time.
PROBES, REPEATS = 6, 2  # At most 6 sizes of a step are tried, each at most twice.
NEAR = 1.25  # The line is followed this far beyond a probe without another one.


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Says how many blocks the KV cache has, and how large they are."""

    num_blocks: int
    block_size: int  # tokens
    bytes_per_token: int

    @property
    def tokens(self) -> int:
        return self.num_blocks * self.block_size

    def describe(self, max_model_len: int, model_config: ModelConfig) -> str:
        """Returns a line for the log. It says so where the cache holds shorter sequences than the model could take."""
        size = self.tokens * self.bytes_per_token / GIB
        line = (
            f"KV cache of {self.tokens:,} tokens ({size:.2f} GiB in blocks of {self.block_size}): "
            f"{self.tokens / max_model_len:.1f} sequences of {max_model_len:,} tokens"
        )
        if self.tokens == max_model_len < model_config.max_position_embeddings:
            line += f" (the model could take {model_config.max_position_embeddings:,}: raise --kv-cache-memory)"
        return line


def check_max_model_len(config: EngineConfig, model_config: ModelConfig) -> None:
    """Refuses, before anything is loaded, a --max-model-len that no machine could serve. Raises ModelError."""
    wanted = config.max_model_len
    if wanted is not None and wanted > model_config.max_position_embeddings:
        raise ModelError(
            f"--max-model-len {wanted} is beyond the {model_config.max_position_embeddings} positions that the model "
            "was made for: lower it."
        )
    if wanted is not None and wanted < 2:
        raise ModelError("--max-model-len must be at least 2: one token of a prompt and one of output.")


def check_weights(weight_bytes: int, available: int, others: Mapping[str, int] | None = None) -> None:
    """Refuses, before anything is loaded, a model that the memory cannot hold. Raises ModelError.

    `others` is what the weights would take with each --quantization that the device has; the largest that fits is
    named.
    """
    if weight_bytes <= available:
        return
    fitting = {name: size for name, size in (others or {}).items() if size <= available}
    advice = "serve a smaller model"
    if fitting:
        best = max(fitting, key=lambda name: fitting[name])
        advice = f"choose --quantization {best}, which takes {fitting[best] / GIB:.1f} GiB"
    raise ModelError(
        f"The weights take {weight_bytes / GIB:.1f} GiB and {available / GIB:.1f} GiB of memory are left: "
        f"free some, or {advice}."
    )


def bytes_to_reserve(config: EngineConfig, model_config: ModelConfig, available: int) -> int:
    """Returns how much to reserve for quantised weights, before it is known on which device they will lie, and how.

    That is nothing where memory is so short that later checks of it could fail for want of the reserve.
    """
    if config.device == "cuda" or config.quantization not in RESERVED:
        return 0
    quantised = parameters = model_config.num_parameters()
    if not model_config.tie_word_embeddings:
        quantised -= model_config.vocab_size * model_config.hidden_size  # The embedding is only looked up.
    size = int(RESERVED[config.quantization] * quantised)
    return size // PAGE * PAGE if size + FLOAT32 * parameters <= available else 0


def cache_bytes_to_reserve(config: EngineConfig, weight_bytes: int, available: int) -> int:
    """Returns how much to reserve for a CPU's KV cache, beside mapped weights; nothing where memory is short."""
    wanted = config.kv_cache_memory or min(max(weight_bytes // 2, LEAST_CPU_CACHE_BYTES), MOST_CPU_CACHE_BYTES)
    return wanted + 2 * PAGE if weight_bytes + 3 * wanted <= available else 0


def cpu_cache_bytes(config: EngineConfig, weight_bytes: int, available: int) -> int:
    """Returns the bytes of KV cache on a CPU, where `available` are left beside the weights. Raises ModelError."""
    if config.kv_cache_memory is None:
        return min(max(weight_bytes // 2, LEAST_CPU_CACHE_BYTES), MOST_CPU_CACHE_BYTES, available // 2)
    return _granted(config.kv_cache_memory, available)


def gpu_cache_bytes(config: EngineConfig, total: int, used: int) -> int:
    """Returns the bytes of KV cache on a GPU, where everything else takes `used` of its memory. Raises ModelError."""
    if config.kv_cache_memory is None:
        return int(total * config.gpu_memory_utilization) - used
    return _granted(config.kv_cache_memory, total - used)


def _granted(wanted: int, available: int) -> int:
    """Returns what was asked for. Raises ModelError where that would take the memory of something else."""
    if wanted > available:
        raise ModelError(
            f"--kv-cache-memory asks for {wanted / GIB:.2f} GiB and {max(0, available) / GIB:.2f} GiB of memory are "
            "left: lower it."
        )
    return wanted


def graph_bytes(largest: int, smallest: int, rows: Sequence[int], row_bytes: int) -> int:
    """Returns what CUDA graphs for steps of these numbers of rows, ascending, take together.

    `largest` is what the largest graph takes alone, `smallest` what the smallest takes beside it. All share the memory
    in which they compute. So each further graph takes what the smallest does, and `row_bytes` for the logits and the
    block table of each further row.
    """
    further = rows[:-1]
    return largest + smallest * len(further) + row_bytes * sum(count - rows[0] for count in further)


def size_cache(config: EngineConfig, cache_bytes: int, bytes_per_token: int) -> CacheSize:
    """Returns a cache of as many blocks as the bytes hold. Raises ModelError when that is none."""
    num_blocks = max(0, cache_bytes) // (bytes_per_token * config.block_size)
    if num_blocks * config.block_size < 2:
        raise ModelError(
            f"There is no room for a KV cache: one block takes {bytes_per_token * config.block_size / 2**20:.2f} MiB "
            f"and {max(0, cache_bytes) / 2**20:.2f} MiB are left for it: raise --kv-cache-memory or "
            "--gpu-memory-utilization, choose a smaller --quantization, or free memory."
        )
    return CacheSize(num_blocks, config.block_size, bytes_per_token)


def check_routes(needed: int, available: int) -> None:
    """Refuses a GPU's KV cache beside which the host has no room for its tokens' routes. Raises ModelError."""
    if needed > available:
        raise ModelError(
            f"Which experts served the tokens in the KV cache takes {needed / GIB:.2f} GiB of the host's memory and "
            f"{available / GIB:.2f} GiB are left: free some, or lower --kv-cache-memory or --gpu-memory-utilization."
        )


def sampled_vocab(config: EngineConfig, model_config: ModelConfig) -> int:
    """Returns how many of the model's token ids may be sampled, from 0 on."""
    return min(config.sampled_vocab or model_config.vocab_size, model_config.vocab_size)


def choose_max_model_len(config: EngineConfig, model_config: ModelConfig, size: CacheSize) -> int:
    """Returns what was asked for, or the model's own limit as far as the cache holds it. Raises ModelError."""
    wanted = config.max_model_len
    if wanted is None:
        return min(model_config.max_position_embeddings, size.tokens)
    if wanted > size.tokens:
        raise ModelError(
            f"--max-model-len {wanted} does not fit the KV cache of {size.tokens} tokens: "
            f"lower it to {size.tokens} or raise --kv-cache-memory."
        )
    return wanted


def measure_step_tokens(seconds: Callable[[int], float]) -> int:
    """Returns how many tokens a step on a CPU computes in STEP_SECONDS. `seconds` runs a step and returns its time.

    The more tokens a step has, the less each of them adds. So the line through the last two probes meets the limit
    before the curve does: the probes come nearer from below, hardly one takes too long, and all of them take about a
    second. A step that takes no longer than the line says was not held up by other work, and is not repeated.
    """
    before, spent, tokens, fitting = 0, 0.0, FEWEST_STEP_TOKENS, 0.0
    expected = 0.0  # seconds that the next probe takes at most, by the line; 0: nothing is known yet
    for _ in range(PROBES):
        took = _best(seconds, tokens, expected)
        each = (took - spent) / (tokens - before)
        fitting = tokens + (STEP_SECONDS - took) / each if each > 0 else MOST_STEP_TOKENS
        if fitting < NEAR * tokens or tokens == MOST_STEP_TOKENS:
            break
        following = min(int(fitting), 4 * tokens, MOST_STEP_TOKENS)
        expected = took + each * (following - tokens) if before else 0.0  # A line needs two probes.
        before, spent, tokens = tokens, took, following
    return max(FEWEST_STEP_TOKENS, min(int(fitting), MOST_STEP_TOKENS) // 8 * 8)


def sure_step_tokens(seconds: float) -> int:
    """Returns how many tokens a step surely computes in STEP_SECONDS, where the fewest take so many seconds.

    Each further token takes no longer than these do.
    """
    return max(FEWEST_STEP_TOKENS, min(int(FEWEST_STEP_TOKENS * STEP_SECONDS / seconds), MOST_STEP_TOKENS) // 8 * 8)


def _best(seconds: Callable[[int], float], tokens: int, expected: float) -> float:
    """Returns the shortest time of several steps, since the machine may be busy.

    A step that takes what was expected, or far too long, is not repeated.
    """
    best = seconds(tokens)
    for _ in range(REPEATS - 1):
        if expected < best < 4 * STEP_SECONDS:
            best = min(best, seconds(tokens))
    return best
