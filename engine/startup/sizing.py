"""How large everything is made: what the user asked for, held against the model and the machine. Pure arithmetic."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from octavo.engine.config import EngineConfig
from octavo.model.config import ModelConfig, ModelError
from octavo.model.weights.reserve import PAGE

GIB = 2**30
FLOAT32 = 4  # bytes, the most that a weight takes
# Of KV cache on a CPU, where there is memory for twice as much: half as large as the weights, within these bounds.
# Taking a GiB from the system costs up to a second and a half at start, which a small model should not wait for.
LEAST_CPU_CACHE_BYTES, MOST_CPU_CACHE_BYTES = GIB, 4 * GIB
CPU_MAX_SEQS, GPU_MAX_SEQS = 64, 256
GPU_STEP_TOKENS = 8192
INVARIANT_STEP_TOKENS = 512  # on a GPU, which then computes them one by one
RESERVED = {"auto": 1.0, "int8": 1.0, "int4": 0.5}  # bytes of a weight, a little less than it takes, by --quantization
STEP_SECONDS = 0.4  # what a full step of new tokens may take on a CPU; long contexts and sampling come on top
FEWEST_STEP_TOKENS, MOST_STEP_TOKENS = 16, 2048  # with fewer a step takes hardly less time
PROBES, REPEATS = 6, 2  # at most so many sizes of a step are tried, each this often
NEAR = 1.25  # how far beyond a probe the line is followed without another one


@dataclass(frozen=True, slots=True)
class Pool:
    """The KV cache in numbers."""

    num_blocks: int
    block_size: int  # tokens
    bytes_per_token: int

    @property
    def tokens(self) -> int:
        return self.num_blocks * self.block_size

    def describe(self, max_model_len: int, shape: ModelConfig) -> str:
        """A line for the log; it says when the pool is why sequences are shorter than the model could take."""
        size = self.tokens * self.bytes_per_token / GIB
        line = (
            f"KV cache of {self.tokens:,} tokens ({size:.2f} GiB in blocks of {self.block_size}): "
            f"{self.tokens / max_model_len:.1f} sequences of {max_model_len:,} tokens"
        )
        if self.tokens == max_model_len < shape.max_position_embeddings:
            line += f" (the model could take {shape.max_position_embeddings:,}: raise --kv-cache-memory)"
        return line


def check_request(config: EngineConfig, shape: ModelConfig) -> None:
    """Refuses, before anything is loaded, what no machine could serve. Raises ModelError."""
    wanted = config.max_model_len
    if wanted is not None and wanted > shape.max_position_embeddings:
        raise ModelError(
            f"--max-model-len {wanted} is beyond the {shape.max_position_embeddings} positions that the model "
            "was made for: lower it."
        )
    if wanted is not None and wanted < 2:
        raise ModelError("--max-model-len must be at least 2: one token of a prompt and one of output.")


def check_weights(weight_bytes: int, available: int, others: Mapping[str, int] | None = None) -> None:
    """Refuses, before anything is loaded, a model that the memory cannot hold. Raises ModelError.

    others: what the weights would take with each --quantization that the device has; the largest that fits is named.
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


def reserve_bytes(config: EngineConfig, shape: ModelConfig, available: int) -> int:
    """Bytes to reserve for quantised weights, before it is known on which device and in which form they will be held.

    None are reserved where memory is so short that whatever is later held against it could miss them.
    """
    if config.device == "cuda" or config.quantization not in RESERVED:
        return 0
    table = 0 if shape.tie_word_embeddings else shape.vocab_size * shape.hidden_size  # looked up, so not quantised
    size = int(RESERVED[config.quantization] * (shape.num_parameters() - table))
    return size // PAGE * PAGE if size + FLOAT32 * shape.num_parameters() <= available else 0


def cpu_cache_bytes(config: EngineConfig, weight_bytes: int, available: int) -> int:
    """Bytes of KV cache on a CPU, given the weights and what is left beside them. Raises ModelError."""
    if config.kv_cache_memory is None:
        return min(max(weight_bytes // 2, LEAST_CPU_CACHE_BYTES), MOST_CPU_CACHE_BYTES, available // 2)
    return _granted(config.kv_cache_memory, available)


def gpu_cache_bytes(config: EngineConfig, total: int, used: int) -> int:
    """Bytes of KV cache on a GPU, of whose memory weights, steps, graphs and others use some. Raises ModelError."""
    if config.kv_cache_memory is None:
        return int(total * config.gpu_memory_utilization) - used
    return _granted(config.kv_cache_memory, total - used)


def _granted(wanted: int, available: int) -> int:
    """What was asked for. Raises ModelError where that would take the memory of something else."""
    if wanted > available:
        raise ModelError(
            f"--kv-cache-memory asks for {wanted / GIB:.2f} GiB and {max(0, available) / GIB:.2f} GiB of memory are "
            "left: lower it."
        )
    return wanted


def graph_bytes(largest: int, smallest: int, rows: Sequence[int], row_bytes: int) -> int:
    """Of CUDA graphs for steps of these many rows, ascending, by what the largest takes and the smallest beside it.

    All share the memory in which they compute, so each further one takes what the smallest does, and room of its own
    for the logits and the block tables of its further rows, `row_bytes` each.
    """
    further = rows[:-1]
    return largest + smallest * len(further) + row_bytes * sum(count - rows[0] for count in further)


def make_pool(config: EngineConfig, cache_bytes: int, bytes_per_token: int) -> Pool:
    """As many blocks as the bytes hold. Raises ModelError when that is none."""
    num_blocks = max(0, cache_bytes) // (bytes_per_token * config.block_size)
    if num_blocks * config.block_size < 2:
        raise ModelError(
            f"There is no room for a KV cache: one block takes {bytes_per_token * config.block_size / 2**20:.2f} MiB "
            f"and {max(0, cache_bytes) / 2**20:.2f} MiB are left for it: raise --kv-cache-memory or "
            "--gpu-memory-utilization, choose a smaller --quantization, or free memory."
        )
    return Pool(num_blocks, config.block_size, bytes_per_token)


def sampled_vocab(config: EngineConfig, shape: ModelConfig) -> int:
    """How many of the model's ids may be sampled, from 0 on."""
    return min(config.sampled_vocab or shape.vocab_size, shape.vocab_size)


def choose_max_model_len(config: EngineConfig, shape: ModelConfig, pool: Pool) -> int:
    """What was asked for, or the model's own limit as far as the pool holds it. Raises ModelError."""
    wanted = config.max_model_len
    if wanted is None:
        return min(shape.max_position_embeddings, pool.tokens)
    if wanted > pool.tokens:
        raise ModelError(
            f"--max-model-len {wanted} does not fit the KV cache of {pool.tokens} tokens: "
            f"lower it to {pool.tokens} or raise --kv-cache-memory."
        )
    return wanted


def measure_step_tokens(seconds: Callable[[int], float]) -> int:
    """The token budget on a CPU: how many tokens a step computes in STEP_SECONDS; `seconds` runs one of that many.

    The more tokens, the less each of them adds: the line through the last two probes meets the limit before the curve
    does. So the probes come nearer from below, and hardly one takes too long; about a second in all. A step that takes
    no longer than the line says was not held up by other work on the machine, and is not repeated.
    """
    before, spent, tokens, fitting = 0, 0.0, FEWEST_STEP_TOKENS, 0.0
    expected = 0.0  # seconds of the next probe at most, by the line; nothing is known yet
    for _ in range(PROBES):
        took = _best(seconds, tokens, expected)
        each = (took - spent) / (tokens - before)
        fitting = tokens + (STEP_SECONDS - took) / each if each > 0 else MOST_STEP_TOKENS
        if fitting < NEAR * tokens or tokens == MOST_STEP_TOKENS:
            break
        following = min(int(fitting), 4 * tokens, MOST_STEP_TOKENS)
        expected = took + each * (following - tokens) if before else 0.0  # through two probes, not through nothing
        before, spent, tokens = tokens, took, following
    return max(FEWEST_STEP_TOKENS, min(int(fitting), MOST_STEP_TOKENS) // 8 * 8)


def _best(seconds: Callable[[int], float], tokens: int, expected: float) -> float:
    """Of several steps, since the machine may be busy; of one that is as expected, or hopeless, once."""
    best = seconds(tokens)
    for _ in range(REPEATS - 1):
        if expected < best < 4 * STEP_SECONDS:
            best = min(best, seconds(tokens))
    return best
