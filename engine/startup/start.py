"""Start: from the flags to a model that runs, with the limits of what it can be asked for."""

from dataclasses import replace
from pathlib import Path

import torch

from octavo.engine.api import Progress, Ready, ReportProgress, SamplingDefaults
from octavo.engine.compute.grammar import Grammars
from octavo.engine.compute.graphs import CudaCapture, Graphs, capture_all, graph_rows, stage_for
from octavo.engine.compute.runner import ModelRunner
from octavo.engine.config import TOKENIZER, EngineConfig
from octavo.engine.schedule.scheduler import Limits
from octavo.engine.startup import machine, sizing
from octavo.engine.startup.probe import Room, allocate
from octavo.model.config import GenerationConfig, ModelConfig, ModelError
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import select_ops, try_out
from octavo.model.kernels.cpu.library import how_to_build, library, why_missing
from octavo.model.kv_cache import KVCache
from octavo.model.loading.checkpoint import load_model
from octavo.model.ops import invariant
from octavo.model.weights.memory import Zeros, zeros_on
from octavo.model.weights.precision import Precision, Wanted, choose_precision, quantizations
from octavo.model.weights.reserve import Reserve


def start(
    config: EngineConfig, report: ReportProgress, reserve: Reserve | None = None
) -> tuple[ModelRunner, Limits, Ready]:
    """Loads the model, into the reserve first, and sizes everything. Raises ModelError for what the user can mend."""
    directory = Path(config.model)
    shape = ModelConfig.from_pretrained(directory)
    generation = GenerationConfig.from_pretrained(directory)
    sizing.check_request(config, shape)
    model = load(config, shape, report, reserve)
    room = Room.on_gpu(model, config, report) if model.device.type == "cuda" else Room.on_cpu(model, config, report)
    pool = sizing.make_pool(config, room.cache_bytes, KVCache.bytes_per_token(shape, model.activation_dtype))
    max_model_len = sizing.choose_max_model_len(config, shape, pool)
    cache = allocate(model, pool.num_blocks, config.block_size)
    grammars = Grammars(directory / TOKENIZER, generation.eos_token_ids)
    sampled_vocab = sizing.sampled_vocab(config, shape)
    stage, graphs = stage_for(config, model, cache, max_model_len), Graphs()
    if stage is not None:
        graphs = capture_all(stage, graph_rows(room.max_num_seqs), CudaCapture(model.device), report)
    runner = ModelRunner(model, cache, sampled_vocab, grammars, model.device.type == "cuda", graphs)
    limits = Limits(max_model_len, room.max_num_seqs, room.step_tokens, shape.vocab_size, config.enable_prefix_caching)
    ready = Ready(
        max_model_len=max_model_len,
        max_num_seqs=min(limits.max_num_seqs, limits.max_num_batched_tokens),
        max_waiting=config.max_waiting,
        description=(
            model.describe(),
            *_missing_kernels(model),
            pool.describe(max_model_len, shape),
            limits.describe(),
            *graphs.description,
        ),
        eos_token_ids=generation.eos_token_ids,
        defaults=_defaults(generation),
    )
    return runner, limits, ready


def _defaults(generation: GenerationConfig) -> SamplingDefaults:
    return SamplingDefaults(
        temperature=generation.temperature,
        top_k=generation.top_k,
        top_p=generation.top_p,
        min_p=generation.min_p,
        repetition_penalty=generation.repetition_penalty,
    )


def load(config: EngineConfig, shape: ModelConfig, report: ReportProgress, reserve: Reserve | None = None) -> Decoder:
    """Loads the model as the flags say. Raises ModelError."""
    device = _device(config.device)
    try_out(device)
    # Beside a GPU, too: they read the checkpoint, and torch counts processors that a container may not use.
    torch.set_num_threads(config.threads or min(machine.processors(), torch.get_num_threads()))
    precision = _precision(config, shape, device)
    zeros = _zeros(device, precision, reserve)

    def loaded(done: int, total: int) -> None:
        report(Progress("loading weights", done, total))

    try:
        model = load_model(Path(config.model), shape, device, precision, loaded, zeros)
    except torch.OutOfMemoryError:
        raise ModelError(
            "The GPU's memory ran out while the weights were loaded: free some, or choose a smaller --quantization."
        ) from None
    nearly_free = device.type == "cpu" and library() is not None and invariant.costs_little(model.matrices())
    if not (config.batch_invariant or nearly_free):
        return model
    ops = select_ops(shape, device, batch_invariant=True)
    # A GPU's fused layers and its norms round as the batch has it; a CPU's do not, and stay.
    return replace(model, ops=ops) if device.type == "cpu" else model.row_by_row(ops)


def _zeros(device: torch.device, precision: Precision, reserve: Reserve | None) -> Zeros:
    """Where quantised weights will lie. What else was reserved is freed, before anything is loaded."""
    memory = reserve.hand_over() if reserve is not None else None
    return zeros_on(device, memory if precision.is_quantised else None)


def _precision(config: EngineConfig, shape: ModelConfig, device: torch.device) -> Precision:
    """What the flags mean on the device. Raises ModelError, also for weights that its memory cannot hold."""
    available = machine.available_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    kernels = library() is not None
    precision = choose_precision(Wanted(config.dtype, config.quantization), shape.dtype, device, kernels)
    others = {
        name: choose_precision(Wanted(quantization=name), shape.dtype, device, kernels).weight_bytes(shape)
        for name in quantizations(device)
    }
    sizing.check_weights(precision.weight_bytes(shape), available, others)
    return precision


def _missing_kernels(model: Decoder) -> tuple[str, ...]:
    """A line for the log, where the C kernels would make everything faster and are not there."""
    if model.device.type != "cpu" or library() is not None:
        return ()
    cost = "every product unpacks its weights, slowly" if model.precision.is_quantised else "decoding is half as fast"
    return (f"The kernels in C {why_missing()}, and without them {cost}: {how_to_build()}.",)


def _device(name: str) -> torch.device:
    """Returns the device that the flag means. Raises ModelError for one that is unknown or not there."""
    match name:
        case "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        case "cuda" if not torch.cuda.is_available():
            raise ModelError("--device cuda was asked for and torch finds no such device: use --device cpu.")
        case "cpu" | "cuda":
            return torch.device(name)
        case other:
            raise ModelError(f"The device {other!r} is unknown; use auto, cpu or cuda.")
