"""Runs steps before there is anything to serve, to find how large the next ones and the KV cache may be."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, takewhile
from pathlib import Path

import torch

from octavo import __version__
from octavo.engine.api import Progress, ReportProgress, SamplingParams
from octavo.engine.compute.graphs import GRAPH_ROWS, CudaCapture, graph_rows, measure, stage_for
from octavo.engine.compute.runner import ModelRunner
from octavo.engine.config import EngineConfig
from octavo.engine.schedule.batch import Batch, Row
from octavo.engine.startup import machine, remembered, sizing
from octavo.engine.startup.remembered import Remembered
from octavo.model.config import ModelError
from octavo.model.decoder import Decoder
from octavo.model.kv_cache import KVCache
from octavo.model.prepared.tile_file import TileFile
from octavo.model.weights.memory import Zeros, zeros_on

MIXED_TOKENS = 64  # tokens of a prompt beside a row that decodes: more than a tile for such rows holds
PLAIN = SamplingParams(max_tokens=1, top_p=0.9)
LARGEST = replace(PLAIN, logprobs=1, logit_bias=((0, 1.0),))  # each of the two takes a copy of the logits


@dataclass(frozen=True, slots=True)
class Capacity:
    """Says what a step may hold, and how much memory is left for the cache beside it."""

    max_num_seqs: int  # at most step_tokens, since each sequence has a token in each step
    step_tokens: int
    cache_bytes: int

    @classmethod
    def of(
        cls, model: Decoder, config: EngineConfig, report: ReportProgress, tiles: TileFile | None = None
    ) -> "Capacity":
        """Finds the capacity of the model's device, as far as the flags leave it open. Raises ModelError.

        `tiles` is the file that the model is mapped from, if it is.
        """
        if model.device.type == "cuda":
            return cls.on_gpu(model, config, report)
        return cls.on_cpu(model, config, report, tiles)

    @classmethod
    def on_cpu(cls, model: Decoder, config: EngineConfig, report: ReportProgress, tiles: TileFile | None) -> "Capacity":
        """Takes the step size that the flags ask for, or runs steps to find the size that keeps them short."""
        budget = config.max_num_batched_tokens or _budget(model, config, report, tiles)
        step_tokens = config.max_num_batched_tokens or max(budget, config.max_num_seqs or 0)
        max_num_seqs = min(config.max_num_seqs or sizing.CPU_MAX_SEQS, step_tokens)
        available = machine.available_memory()
        if tiles is not None:  # The pages of a file count as available, and these had better stay.
            available = max(0, available - tiles.size)
        return cls(max_num_seqs, step_tokens, sizing.cpu_cache_bytes(config, model.weight_bytes, available))

    @classmethod
    def on_gpu(cls, model: Decoder, config: EngineConfig, report: ReportProgress) -> "Capacity":
        """Runs the largest step, and gives the cache what gpu_memory_utilization leaves beside its peak."""
        most = sizing.INVARIANT_STEP_TOKENS if config.batch_invariant else sizing.GPU_STEP_TOKENS
        step_tokens = config.max_num_batched_tokens or most
        max_num_seqs = min(config.max_num_seqs or sizing.GPU_MAX_SEQS, step_tokens)
        torch.cuda.empty_cache()  # What quantising took is kept for streams that no step uses.
        torch.cuda.reset_peak_memory_stats(model.device)
        probe = Probe.of(model, config, step_tokens, LARGEST)
        try:
            for sequences in (1, max_num_seqs):  # One step has the most context, the other the most logits.
                probe.run(step_tokens, sequences)
            if model.ops.capturable:
                probe.compile(step_tokens, report)
        except torch.OutOfMemoryError:
            raise ModelError(
                f"A step of {step_tokens} tokens does not fit the GPU's memory beside the weights: "
                "lower --max-num-batched-tokens, or choose a smaller --quantization."
            ) from None
        free, total = torch.cuda.mem_get_info(model.device)
        elsewhere = total - free - torch.cuda.memory_reserved(model.device)
        peak = torch.cuda.max_memory_reserved(model.device) - probe.cache_bytes  # weights and the largest step
        used = elsewhere + peak + _graph_bytes(config, probe.runner, max_num_seqs)
        del probe
        torch.cuda.empty_cache()
        return cls(max_num_seqs, step_tokens, sizing.gpu_cache_bytes(config, total, used))


def _graph_bytes(config: EngineConfig, runner: ModelRunner, max_num_seqs: int) -> int:
    """Returns what the CUDA graphs will take; it captures two of them on the cache of a probe to find out."""
    model = runner.model
    stage = stage_for(config, model, runner.cache, config.max_model_len or model.config.max_position_embeddings)
    if stage is None:
        return 0

    def free() -> int:
        """Returns the bytes that nobody has, in the GPU's memory."""
        torch.cuda.synchronize(model.device)
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(model.device)[0]

    rows = graph_rows(max_num_seqs)
    largest, smallest = measure(stage, rows, CudaCapture(model.device), free)
    row_bytes = torch.float32.itemsize * model.config.vocab_size + torch.int32.itemsize * stage.blocks
    return sizing.graph_bytes(largest, smallest, rows, row_bytes)


def _budget(model: Decoder, config: EngineConfig, report: ReportProgress, tiles: TileFile | None) -> int:
    """Returns how many tokens a step on a CPU should have, by this thread's CPU time.

    CPU time is a tenth less than the time on the clock, but stays the same while others use the machine. What was
    measured is remembered for mapped weights, whose start would else be long.
    """
    total = 2 * sizing.PROBES * sizing.REPEATS + remembered.STEPS
    done = iter(range(total))

    def seconds_with(probe: Probe, tokens: int) -> float:
        report(Progress("measuring steps", next(done), total))
        started = time.thread_time()
        probe.run(tokens, 1)
        return time.thread_time() - started

    def measured() -> int:
        return sizing.measure_step_tokens(partial(seconds_with, Probe.of(model, config, sizing.MOST_STEP_TOKENS)))

    if tiles is None or config.cache is None:
        return measured()
    fewest = sizing.FEWEST_STEP_TOKENS
    shortest = partial(seconds_with, Probe.of(model, config, fewest), fewest)  # Its cache is small, and soon there.
    facts = {"weights": tiles.digest, "threads": torch.get_num_threads(), "octavo": __version__}
    return Remembered.of(Path(config.cache), facts).step_tokens(shortest, measured, sizing.sure_step_tokens)


@dataclass(frozen=True, slots=True)
class Probe:
    """Runs steps of a given size before there is anything to serve, on a cache of its own."""

    runner: ModelRunner
    max_len: int  # tokens of one sequence
    longest: int  # tokens of the longest sequence that will be served, which may take many steps to become so long
    params: SamplingParams  # each sequence's

    @classmethod
    def of(cls, model: Decoder, config: EngineConfig, tokens: int, params: SamplingParams = PLAIN) -> "Probe":
        """Makes a probe for steps of up to that many tokens."""
        longest = config.max_model_len or model.config.max_position_embeddings
        max_len = min(tokens, longest)
        cache = allocate(model, -(-max_len // config.block_size), config.block_size, zeros_on(model.device))
        runner = ModelRunner(model, cache, sizing.sampled_vocab(config, model.config))
        return cls(runner, max_len, longest, params)

    @property
    def cache_bytes(self) -> int:
        """Returns what the probe's own cache takes."""
        model, cache = self.runner.model, self.runner.cache
        per_token = KVCache.bytes_per_token(model.config, model.activation_dtype)
        return cache.num_blocks * cache.block_size * per_token

    def run(self, tokens: int, sequences: int) -> None:
        """Runs a step of so many tokens over at least so many sequences.

        The sequences share all blocks, since nobody reads what comes of them.
        """
        self._step(self._spans(tokens, sequences))

    def _spans(self, tokens: int, sequences: int) -> list[tuple[int, int]]:
        """Returns what each sequence computes in such a step: (position, number)."""
        sequences = max(sequences, -(-tokens // self.max_len))
        return [(0, tokens // sequences + (n < tokens % sequences)) for n in range(sequences)]

    def compile(self, step_tokens: int, report: ReportProgress) -> None:
        """Runs steps of all sizes up to that many tokens, so that serving waits for no compiler.

        These are steps that decode, a mixed one, and prompts beyond the largest step that decodes. Kernels are chosen
        by the number of tokens, and each choice is for twice as many as the one before it, or more.
        """
        last = self.longest - 1, 1  # A token behind the longest context, whose keys are cut among programs.
        steps = [[last, *[(0, 1)] * (rows - 1)] for rows in GRAPH_ROWS if rows <= step_tokens]
        steps.append([last, (max(0, self.longest - MIXED_TOKENS), min(MIXED_TOKENS, self.longest))])
        steps += [self._spans(tokens, 1) for tokens in _prompts(step_tokens)]
        for done, spans in enumerate(steps):
            report(Progress("compiling kernels", done, len(steps)))
            self._step(spans)
        report(Progress("compiling kernels", len(steps), len(steps)))

    def _step(self, spans: Sequence[tuple[int, int]]) -> None:
        """Runs a step over sequences that each compute a number of tokens from a position on: (position, number)."""
        cache = self.runner.cache
        blocks = tuple(range(cache.num_blocks))  # Every sequence has these, again and again.
        vocab = self.runner.model.config.vocab_size
        rows = []
        for n, (start, number) in enumerate(spans):
            ids = tuple((n + index * 2654435761) % vocab for index in range(number))  # These reach many experts.
            rounds = -(-(start + number) // (cache.num_blocks * cache.block_size))
            rows.append(Row(f"probe {n}", start, ids, blocks * rounds, self.params, 0))
        self.runner.run(Batch(tuple(rows)))


def _prompts(step_tokens: int) -> Iterator[int]:
    """Yields sizes of steps between the largest that decodes and that one, each twice the one before it."""
    doubled = (GRAPH_ROWS[-1] << n for n in count(1))
    return takewhile(lambda tokens: tokens < step_tokens, doubled)


def allocate(model: Decoder, num_blocks: int, block_size: int, zeros: Zeros) -> KVCache:
    """Allocates a cache for the model. Raises ModelError when the memory does not suffice."""
    try:
        return KVCache.of(model.config, num_blocks, block_size, model.activation_dtype, zeros)
    except (MemoryError, RuntimeError):  # torch raises a RuntimeError for both kinds of memory.
        raise ModelError(
            f"The KV cache of {num_blocks * block_size} tokens could not be allocated: lower --kv-cache-memory or "
            "--gpu-memory-utilization, or choose a smaller --quantization."
        ) from None
