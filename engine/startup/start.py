"""Makes a model that runs from the flags, and the limits of what it can be asked for."""

from dataclasses import dataclass

import torch

from octavo.engine.api import Progress, Ready, ReportProgress, SamplingDefaults
from octavo.engine.compute.grammar import Grammars
from octavo.engine.compute.graphs import CudaCapture, Graphs, Stage, capture_all, graph_rows, stage_for
from octavo.engine.compute.routes import RouteStore
from octavo.engine.compute.runner import ModelRunner
from octavo.engine.config import EngineConfig
from octavo.engine.schedule.scheduler import Limits
from octavo.engine.startup import machine, sizing
from octavo.engine.startup.cache_memory import cache_zeros, observer
from octavo.engine.startup.experts import expert_shape
from octavo.engine.startup.kept import keep, map_if_fitting
from octavo.engine.startup.probe import Capacity, allocate
from octavo.engine.startup.tiles import Found
from octavo.model.config import ModelConfig, ModelError
from octavo.model.decoder import Decoder
from octavo.model.generation_config import GenerationConfig
from octavo.model.kernels.choice import select_backend, try_out
from octavo.model.kernels.cpu.library import how_to_build, library, why_missing
from octavo.model.kv_cache import KVCache
from octavo.model.loading.checkpoint import load_model
from octavo.model.loading.choice import precision_for, weight_bytes
from octavo.model.ops.invariant import Invariance, costs_little
from octavo.model.prepared.tile_file import TileFile
from octavo.model.weights.memory import Zeros, zeros_on
from octavo.model.weights.precision import Precision, Wanted, choose_precision, quantizations
from octavo.model.weights.reserve import Reserve


@dataclass(frozen=True, slots=True)
class Loaded:
    """A Loaded is a model, and the tile file that it is mapped from, if it is."""

    model: Decoder
    tiles: TileFile | None = None


def start(
    found: Found,
    model_config: ModelConfig,
    generation: GenerationConfig,
    report: ReportProgress,
    reserve: Reserve | None = None,
) -> tuple[ModelRunner, Limits, Ready]:
    """Loads the model and sizes everything. Raises ModelError for what the user can mend.

    The reserve is for quantised weights or, if they are mapped, for the KV cache.
    """
    config = found.config
    loaded = load(found, model_config, report, None if found.file else reserve)
    model = loaded.model
    capacity = Capacity.of(model, config, report, loaded.tiles)
    bytes_per_token = KVCache.bytes_per_token(model_config, model.activation_dtype)
    if model.device.type == "cpu":  # A GPU's routes are kept elsewhere.
        bytes_per_token += RouteStore.bytes_per_token(model_config)
    size = sizing.size_cache(config, capacity.cache_bytes, bytes_per_token)
    max_model_len = sizing.choose_max_model_len(config, model_config, size)
    zeros = cache_zeros(model, size, reserve if found.file else None)
    cache = allocate(model, size.num_blocks, size.block_size, zeros)
    graphs = _capture(stage_for(config, model, cache, max_model_len), capacity.max_num_seqs, report)
    runner = ModelRunner(
        model,
        cache,
        sampled_vocab=sizing.sampled_vocab(config, model_config),
        grammars=Grammars(config.tokenizer, generation.eos_token_ids, sizing.sampled_vocab(config, model_config)),
        overlaps=model.device.type == "cuda",
        graphs=graphs,
        observer=observer(model, size, zeros),
    )
    limits = Limits(
        max_model_len=max_model_len,
        max_num_seqs=capacity.max_num_seqs,
        max_num_batched_tokens=capacity.step_tokens,
        vocab_size=model_config.vocab_size,
        enable_prefix_caching=config.enable_prefix_caching,
        experts=expert_shape(model),
    )
    description = (
        model.describe(),
        *_where_weights_are_kept(found, loaded),
        *_missing_kernels(model),
        size.describe(max_model_len, model_config),
        limits.describe(),
        *graphs.description,
    )
    return runner, limits, _ready(config, limits, generation, description)


def _ready(config: EngineConfig, limits: Limits, generation: GenerationConfig, description: tuple[str, ...]) -> Ready:
    return Ready(
        max_model_len=limits.max_model_len,
        max_num_seqs=limits.max_num_seqs,
        max_waiting=config.max_waiting,
        description=description,
        eos_token_ids=generation.eos_token_ids,
        vocab_size=limits.vocab_size,
        experts=limits.experts,
        defaults=_defaults(generation),
    )


def _capture(stage: Stage | None, max_num_seqs: int, report: ReportProgress) -> Graphs:
    """Captures the CUDA graphs of a stage; returns none where there is no stage."""
    if stage is None:
        return Graphs()
    return capture_all(stage, graph_rows(max_num_seqs), CudaCapture(stage.model.device), report)


def _defaults(generation: GenerationConfig) -> SamplingDefaults:
    """Returns what generation_config.json recommends, as the API process reads it."""
    return SamplingDefaults(
        temperature=generation.temperature,
        top_k=generation.top_k,
        top_p=generation.top_p,
        min_p=generation.min_p,
        repetition_penalty=generation.repetition_penalty,
    )


def _where_weights_are_kept(found: Found, loaded: Loaded) -> tuple[str, ...]:
    """Returns lines for the log, and begins to keep the weights if they are not kept yet."""
    if loaded.tiles is not None:
        return (f"The weights are mapped from {loaded.tiles.path}.",)
    return keep(found, loaded.model)


def load(found: Found, model_config: ModelConfig, report: ReportProgress, reserve: Reserve | None = None) -> Loaded:
    """Maps the tile file that was found, or loads the model as the flags say. Raises ModelError."""
    device = _device(found.config.device)
    config = found.on_cpu if device.type == "cpu" else found.config
    try_out(device)
    # These threads read the checkpoint for a GPU, too. Torch counts processors that a container may not use.
    torch.set_num_threads(config.threads or min(machine.processors(), torch.get_num_threads()))
    precision = _precision(found, config, model_config, device)
    backend = select_backend(model_config, device, _invariance(config, device, precision))
    model, found = map_if_fitting(found, model_config, backend, precision)
    if model is not None:
        return Loaded(model, found.file)
    directory, zeros = found.readable, _zeros(device, precision, reserve)

    def read(done: int, total: int) -> None:
        report(Progress("loading weights", done, total))

    try:
        return Loaded(load_model(directory, model_config, backend, precision, read, zeros))
    except torch.OutOfMemoryError:
        raise ModelError(
            "The GPU's memory ran out while the weights were loaded: free some, or choose a smaller --quantization."
        ) from None


def _invariance(config: EngineConfig, device: torch.device, precision: Precision) -> Invariance:
    """Returns what the flag asks for; without the flag, what costs little."""
    if config.batch_invariant:
        return Invariance.FULL
    is_cheap = device.type == "cpu" and library() is not None and costs_little(precision)
    return Invariance.CHEAP if is_cheap else Invariance.NONE


def _zeros(device: torch.device, precision: Precision, reserve: Reserve | None) -> Zeros:
    """Returns what allocates quantised weights; without such weights the reserve is freed before anything is loaded."""
    memory = reserve.hand_over() if reserve is not None else None
    return zeros_on(device, memory if precision.is_quantised else None)


def _precision(found: Found, config: EngineConfig, model_config: ModelConfig, device: torch.device) -> Precision:
    """Returns what the flags mean on the device. Raises ModelError, also for weights that its memory cannot hold."""
    available = machine.available_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    directory, kernels = found.checkpoint.directory, library() is not None
    wanted = Wanted(config.dtype, config.quantization)
    precision = precision_for(directory, wanted, model_config, device, kernels)
    others = {}
    for name in () if precision.keeps else quantizations(device):
        other = choose_precision(Wanted(quantization=name), model_config.dtype, device, kernels)
        others[name] = other.weight_bytes(model_config)
    mapped = found.file if device.type == "cpu" else None
    size = mapped.size if mapped is not None else weight_bytes(found.readable, model_config, precision)
    sizing.check_weights(size, available, others)
    return precision


def _missing_kernels(model: Decoder) -> tuple[str, ...]:
    """Returns a line for the log where the C kernels are missing that would make everything faster, else none."""
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
