"""ModelRunner: a batch of plain numbers becomes tensors, goes through the model, and comes back as tokens.

Also where the engine starts: it loads the model, finds out what a step costs, and sizes the KV cache.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from engine import machine, sizing
from engine.api import Progress, Ready, SamplingDefaults, SamplingParams, TokenLogprobs
from engine.config import TOKENIZER, EngineConfig
from engine.grammar import Grammars
from engine.graphs import SIZES, CudaCapture, Graphs, Stage, capture_all, measure, sizes
from engine.sampler import Drawn, draw, score
from engine.scheduler import Limits
from engine.step import Batch, Row, Sample
from engine.tensors import Drawing, to_forward_batch
from model.checkpoint import load_model
from model.config import GenerationConfig, ModelConfig, ModelError
from model.kernels.cpu.library import how_to_build, library
from model.kv_cache import KVCache
from model.mixtral import Mixtral
from model.ops import select_ops
from model.precision import Wanted, choose_precision, quantizations

SCORED_AT_ONCE = 64  # prompt tokens
MIXED_TOKENS = 64  # of a prompt beside a row that decodes: more than a tile for such rows holds

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Launched:
    """A step that the device computes, or has computed."""

    batch: Batch
    drawn: Drawn | None  # for `batch.sampled`; None when that is empty
    scored: Tensor  # [S, H] hidden states of all targets
    done: torch.Event | None  # after everything else; None on a CPU, where what was launched is done

    @property
    def drawing(self) -> Drawing | None:
        """What the next step may find pending."""
        if self.drawn is None:
            return None
        return Drawing(self.drawn.tokens, {row.id: place for place, row in enumerate(self.batch.sampled)})


@dataclass(frozen=True, slots=True)
class ModelRunner:
    """The model, its KV cache, and where the outputs stand in their grammars. Stateless but for the latter two."""

    model: Mixtral
    cache: KVCache
    sampled_vocab: int
    grammars: Grammars = field(default_factory=Grammars)
    overlaps: bool = False  # whether `launch` returns before the device is done
    graphs: Graphs = field(default_factory=Graphs)

    def run(self, batch: Batch) -> list[Sample]:
        """Computes the rows' tokens into the cache; returns what came of each row of `batch.answered`."""
        return self.collect(self.launch(batch))

    def launch(self, batch: Batch, before: Launched | None = None) -> Launched:
        """Enqueues all that makes tokens of the batch; waits at most for masks of grammars, which the host computes.

        `before` is the step launched before this one, whose tokens are those that are pending here.
        """
        with torch.inference_mode():
            return self.draw(batch, *self.compute(batch, before))

    def compute(self, batch: Batch, before: Launched | None = None) -> tuple[Tensor, Tensor]:
        """The rows' tokens into the cache; logits [R, V] of `batch.sampled`, hidden states [S, H] of all targets."""
        drawing = before.drawing if before is not None else None
        if (graph := self.graphs.find(batch)) is not None:
            logits = graph.logits(batch, drawing)
            return logits, logits[:0]  # it has no targets
        inputs = to_forward_batch(batch, self.cache.block_size, self.model.device, drawing)
        hidden = self.model.hidden(inputs, self.cache)  # [R + S, H]
        sampled = len(batch.sampled)
        return self.model.logits(hidden[:sampled]), hidden[sampled:]

    def draw(self, batch: Batch, logits: Tensor, scored: Tensor) -> Launched:
        """The next tokens, as far as the rows' grammars allow. logits [R, V], scored [S, H]"""
        rows, drawn, done = batch.sampled, None, None
        if rows:
            drawn = draw(logits, rows, self.sampled_vocab, self.grammars.allowed(rows), self.model.ops.draw)
        if self.model.device.type == "cuda":
            done = torch.Event(self.model.device)
            done.record()
        return Launched(batch, drawn, scored, done)

    def collect(self, launched: Launched) -> list[Sample]:
        """Waits for that step, and for none launched later; what came of each row of its batch that is answered."""
        if launched.done is not None:
            launched.done.synchronize()
        rows = launched.batch.sampled
        tokens = iter(self.grammars.advance(rows, launched.drawn.samples()) if launched.drawn is not None else ())
        answers, scored = [], launched.scored
        for row in launched.batch.answered:
            answer = Sample(None) if row.output is None else next(tokens)
            if row.targets:
                answer = replace(answer, prompt_logprobs=self._scores(row, scored[: len(row.targets)]))
                scored = scored[len(row.targets) :]
            answers.append(answer)
        return answers

    @torch.inference_mode()
    def _scores(self, row: Row, hidden: Tensor) -> tuple[TokenLogprobs, ...]:
        """Of the row's targets, a few at a time: the logits of a long prompt would take gigabytes. hidden [S, H]"""
        found: list[TokenLogprobs] = []
        for start in range(0, len(row.targets), SCORED_AT_ONCE):
            part = slice(start, start + SCORED_AT_ONCE)
            logits = self.model.logits(hidden[part])[:, : self.sampled_vocab]
            found += score(logits, row.targets[part], row.params.prompt_logprobs or 0)
        return tuple(found)


def start(config: EngineConfig, report: Report) -> tuple[ModelRunner, Limits, Ready]:
    """Loads the model and sizes everything. Raises ModelError for what the user can mend."""
    directory = Path(config.model)
    shape = ModelConfig.from_pretrained(directory)
    generation = GenerationConfig.from_pretrained(directory)
    sizing.check_request(config, shape)
    model = load(config, shape, report)
    room = _Room.on_gpu(model, config, report) if model.device.type == "cuda" else _Room.on_cpu(model, config, report)
    pool = sizing.make_pool(config, room.cache_bytes, KVCache.bytes_per_token(shape, model.activation_dtype))
    max_model_len = sizing.choose_max_model_len(config, shape, pool)
    cache = _allocate(model, pool.num_blocks, config.block_size)
    grammars = Grammars(directory / TOKENIZER, generation.eos_token_ids)
    sampled_vocab = min(config.sampled_vocab or shape.vocab_size, shape.vocab_size)
    stage, graphs = _stage(config, model, cache, max_model_len), Graphs()
    if stage is not None:
        graphs = capture_all(stage, sizes(room.max_num_seqs), CudaCapture(model.device), report)
    runner = ModelRunner(model, cache, sampled_vocab, grammars, model.device.type == "cuda", graphs)
    limits = Limits(max_model_len, room.max_num_seqs, room.step_tokens, shape.vocab_size, config.enable_prefix_caching)
    ready = Ready(
        max_model_len=max_model_len,
        pool_tokens=pool.tokens,
        max_num_seqs=min(limits.max_num_seqs, limits.max_num_batched_tokens),
        max_waiting=config.max_waiting,
        description=(
            model.describe(),
            *_lost(model),
            pool.describe(max_model_len, shape),
            limits.describe(),
            *graphs.description,
        ),
        eos_token_ids=generation.eos_token_ids,
        defaults=SamplingDefaults(
            generation.temperature,
            generation.top_k,
            generation.top_p,
            generation.min_p,
            generation.repetition_penalty,
        ),
    )
    return runner, limits, ready


def load(config: EngineConfig, shape: ModelConfig, report: Report) -> Mixtral:
    """Loads the model as the flags say. Raises ModelError."""
    device = _device(config.device)
    if device.type == "cpu":
        torch.set_num_threads(config.threads or min(machine.processors(), torch.get_num_threads()))
    available = machine.available_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    kernels = library() is not None
    precision = choose_precision(Wanted(config.dtype, config.quantization), shape.dtype, device, kernels)
    others = {
        name: choose_precision(Wanted(quantization=name), shape.dtype, device, kernels).weight_bytes(shape)
        for name in quantizations(device)
    }
    sizing.check_weights(precision.weight_bytes(shape), available, others)

    def loaded(done: int, total: int) -> None:
        report(Progress("loading weights", done, total))

    try:
        model = load_model(Path(config.model), shape, device, precision, loaded)
    except torch.OutOfMemoryError:
        raise ModelError(
            "The GPU's memory ran out while the weights were loaded: free some, or choose a smaller --quantization."
        ) from None
    if not config.batch_invariant:
        return model
    ops = select_ops(shape, device, batch_invariant=True)
    # A GPU's fused layers and its norms round as the batch has it; a CPU's do not, and stay.
    return replace(model, ops=ops) if device.type == "cpu" else model.row_by_row(ops)


def _stage(config: EngineConfig, model: Mixtral, cache: KVCache, max_model_len: int) -> Stage | None:
    """For CUDA graphs, where device and operations have them and nobody said no."""
    if config.enforce_eager or model.device.type != "cuda" or not model.ops.capturable:
        return None
    return Stage(model, cache, -(-max_model_len // cache.block_size))


def _lost(model: Mixtral) -> tuple[str, ...]:
    """A line for the log where the C kernels could have made everything faster."""
    if model.device.type != "cpu" or library() is not None:
        return ()
    cost = "every product unpacks its weights, slowly" if model.precision.is_quantised else "decoding is half as fast"
    return (f"The kernels in C were not built, and without them {cost}: {how_to_build()}.",)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device cuda was asked for and torch finds no such device: use --device cpu.")
    return torch.device(name)


def _allocate(model: Mixtral, num_blocks: int, block_size: int) -> KVCache:
    try:
        return KVCache.allocate(model.config, num_blocks, block_size, model.activation_dtype, model.device)
    except (MemoryError, RuntimeError):  # torch.OutOfMemoryError is a RuntimeError, and so is the CPU's own
        raise ModelError(
            f"The KV cache of {num_blocks * block_size} tokens could not be allocated: lower --kv-cache-memory or "
            "--gpu-memory-utilization."
        ) from None


@dataclass(frozen=True, slots=True)
class _Room:
    """What a step may hold, and what is left for the cache beside it."""

    max_num_seqs: int
    step_tokens: int
    cache_bytes: int

    @classmethod
    def on_cpu(cls, model: Mixtral, config: EngineConfig, report: Report) -> "_Room":
        """Steps of the size that was asked for, or of the size that keeps them short, found by running some."""
        step_tokens = config.max_num_batched_tokens or max(_measure(model, config, report), config.max_num_seqs or 0)
        max_num_seqs = config.max_num_seqs or min(sizing.CPU_MAX_SEQS, step_tokens)
        available = machine.available_memory()
        return cls(max_num_seqs, step_tokens, sizing.cpu_cache_bytes(config, model.weight_bytes, available))

    @classmethod
    def on_gpu(cls, model: Mixtral, config: EngineConfig, report: Report) -> "_Room":
        """What gpu_memory_utilization leaves beside the largest step's peak, found by running it."""
        max_num_seqs = config.max_num_seqs or sizing.GPU_MAX_SEQS
        most = sizing.INVARIANT_STEP_TOKENS if config.batch_invariant else sizing.GPU_STEP_TOKENS
        step_tokens = config.max_num_batched_tokens or most
        torch.cuda.empty_cache()  # what quantising took is on streams that no step uses
        torch.cuda.reset_peak_memory_stats(model.device)
        probe = _Probe.of(model, config, step_tokens)
        try:
            for sequences in (1, min(max_num_seqs, step_tokens)):  # the most context, the most logits
                probe.run(step_tokens, sequences)
            if model.fused is not None:
                probe.compile(tuple(count for count in SIZES if count <= step_tokens), report)
        except torch.OutOfMemoryError:
            raise ModelError(
                f"A step of {step_tokens} tokens does not fit the GPU's memory beside the weights: "
                "lower --max-num-batched-tokens, or choose a smaller --quantization."
            ) from None
        free, total = torch.cuda.mem_get_info(model.device)
        elsewhere = total - free - torch.cuda.memory_reserved(model.device)
        used = elsewhere + torch.cuda.max_memory_reserved(model.device) - probe.cache_bytes
        used += _graph_bytes(config, probe.runner, max_num_seqs)
        del probe
        torch.cuda.empty_cache()
        cache_bytes = config.kv_cache_memory or int(total * config.gpu_memory_utilization) - used
        return cls(max_num_seqs, step_tokens, cache_bytes)


def _graph_bytes(config: EngineConfig, runner: ModelRunner, max_num_seqs: int) -> int:
    """What the CUDA graphs will take, found by capturing two on the cache of a probe."""
    model = runner.model
    stage = _stage(config, model, runner.cache, config.max_model_len or model.config.max_position_embeddings)
    if stage is None:
        return 0

    def free() -> int:
        torch.cuda.synchronize(model.device)
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(model.device)[0]

    rows = sizes(max_num_seqs)
    largest, smallest = measure(stage, rows, CudaCapture(model.device), free)
    return sizing.graph_bytes(largest, smallest, rows, torch.float32.itemsize * model.config.vocab_size)


def _measure(model: Mixtral, config: EngineConfig, report: Report) -> int:
    """Steps by this thread's CPU time: a tenth less than by the clock, but the same when others use the machine too."""
    probe = _Probe.of(model, config, sizing.MOST_STEP_TOKENS)
    total = sizing.PROBES * sizing.REPEATS
    done = iter(range(total))

    def seconds(tokens: int) -> float:
        report(Progress("measuring steps", next(done), total))
        started = time.thread_time()
        probe.run(tokens, 1)
        return time.thread_time() - started

    return sizing.measure_step_tokens(seconds)


@dataclass(frozen=True, slots=True)
class _Probe:
    """Runs steps of a given size before there is anything to serve, on a cache of its own."""

    runner: ModelRunner
    max_len: int  # tokens of one sequence

    @classmethod
    def of(cls, model: Mixtral, config: EngineConfig, tokens: int) -> "_Probe":
        """A probe for steps of up to that many tokens."""
        max_len = min(tokens, config.max_model_len or model.config.max_position_embeddings)
        cache = _allocate(model, -(-max_len // config.block_size), config.block_size)
        return cls(ModelRunner(model, cache, model.config.vocab_size), max_len)

    @property
    def cache_bytes(self) -> int:
        model, cache = self.runner.model, self.runner.cache
        per_token = KVCache.bytes_per_token(model.config, model.activation_dtype)
        return cache.num_blocks * cache.block_size * per_token

    def run(self, tokens: int, sequences: int) -> None:
        """One step of so many tokens over at least so many sequences, which all share the blocks: nobody reads it."""
        sequences = max(sequences, -(-tokens // self.max_len))
        self._step([(0, tokens // sequences + (n < tokens % sequences)) for n in range(sequences)])

    def compile(self, counts: Sequence[int], report: Report) -> None:
        """Steps that decode so many rows each, and a mixed one, so that serving waits for no compiler."""
        last = self.max_len - 1, 1  # behind the longest context, whose keys are cut among programs
        steps = [[last] * count for count in counts]
        steps.append([last, (max(0, self.max_len - MIXED_TOKENS), min(MIXED_TOKENS, self.max_len))])
        for done, spans in enumerate(steps):
            report(Progress("compiling kernels", done, len(steps)))
            self._step(spans)
        report(Progress("compiling kernels", len(steps), len(steps)))

    def _step(self, spans: Sequence[tuple[int, int]]) -> None:
        """Sequences that compute, from a position on, so many tokens."""
        blocks = tuple(range(self.runner.cache.num_blocks))
        params = SamplingParams(max_tokens=1, top_p=0.9)
        vocab = self.runner.model.config.vocab_size
        rows = []
        for n, (start, count) in enumerate(spans):
            ids = tuple((n + index * 2654435761) % vocab for index in range(count))  # spread over the experts
            rows.append(Row(f"probe {n}", start, ids, blocks, params, 0))
        self.runner.run(Batch(tuple(rows)))
