"""Measures decoding and prefill through all layers, or as many as fit, and profiles them: section `steps`."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from benchmarks.common.batches import Lengths, batch_of, keys_seen, random_cache, random_table
from benchmarks.common.figures import Spread
from benchmarks.common.loads import touched_share
from benchmarks.gpu.inputs import layers_that_fit, random_model
from benchmarks.gpu.run import Measurement, Run
from octavo.model.decoder import Decoder
from octavo.model.kernels.gpu.decoder import GpuDecoder
from octavo.model.kernels.gpu.ops import GpuOps
from octavo.model.kv_cache import KVCache
from octavo.model.weights.precision import Precision

CONTEXT, SMALL_CONTEXT = 512, 24  # tokens of each sequence that decodes
PREFILL, SMALL_PREFILL = 4096, 6  # new tokens
WEIGHTS_SHARE = 0.75  # of free memory; the rest is for 256 sequences' keys and values, and a step's activations
PROFILED, SMALL_PROFILED = (1, 64), (1,)  # sequences of a step whose kernels are profiled
PROFILED_STEPS, SMALL_PROFILED_STEPS = 5, 1
LARGEST = 12  # kernels that are shown
NOT_SERVED = "int8-groups"  # no flag asks for it


def measure(run: Run) -> None:
    """Measures decoding with every number of sequences, and one prefill, in every kind of weights."""
    for name in served(run):
        with run.attempt(f"steps in {name}"):
            _kind(run, name)
        run.forget()


def served(run: Run) -> tuple[str, ...]:
    """Returns the kinds of weights that a model can be served with."""
    return tuple(name for name in run.kinds if name != NOT_SERVED)


def model_of(run: Run, name: str) -> Decoder:
    """Returns a model of random weights on the device, which runs through the kernels."""
    kind = run.kind(name)
    precision = Precision(run.dtype, kind, run.dtype)
    layers = layers_that_fit(run.config, precision, int(WEIGHTS_SHARE * run.available()))
    config = replace(run.config, num_hidden_layers=layers)
    model = random_model(config, run.dtype, kind, run.device, lambda: None)
    ops = GpuOps.on(config, run.device) if run.is_real else GpuOps(config, run.processors, run.arch)
    model = replace(model, ops=ops.ops())
    run.say(f"made {layers} layers in {name}")
    return replace(model, fused=GpuDecoder.of(model.layers, config.rms_norm_eps, run.arch))


def layers_note(run: Run, model: Decoder) -> str:
    """Says how many layers were measured, if not all of them."""
    there, whole = model.config.num_hidden_layers, run.config.num_hidden_layers
    return "" if there == whole else f"{there} of {whole} layers"


def step_bytes(model: Decoder, tokens: int) -> float:
    """Returns the bytes of weights that a step reads: the experts that are likely to be chosen, and all else once."""
    experts = sum(
        each.nbytes for layer in model.layers for each in (*layer.moe.experts.gate_up, *layer.moe.experts.down)
    )
    read = experts * touched_share(model.config, tokens)
    return model.weight_bytes - experts - model.embedding.table.nbytes + read


def step_flop(model: Decoder, lengths: Lengths) -> float:
    """Returns the FLOP of a step in which the last token of each sequence gets logits."""
    config = model.config
    table = config.vocab_size * config.hidden_size
    each = config.num_active_parameters() - 2 * table  # without the embedding and the head
    attention = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    tokens = sum(new for new, _ in lengths)
    return 2.0 * each * tokens + 2.0 * table * len(lengths) + 4.0 * attention * keys_seen(lengths)


def decode_floor(run: Run, model: Decoder, lengths: Lengths) -> float:
    """Returns the seconds that a step takes at least in which each of these sequences has one new token."""
    cached = sum(end for _, end in lengths) * KVCache.bytes_per_token(model.config, run.dtype)
    return run.ceilings.floor(step_bytes(model, len(lengths)) + cached, step_flop(model, lengths))


def _kind(run: Run, name: str) -> None:
    model = model_of(run, name)
    for tokens in run.tokens:
        with run.attempt(f"decoding in {name}, B={tokens}"):
            run.add(_decode(run, name, model, tokens))
    with run.attempt(f"prefill in {name}"):
        run.add(_prefill(run, name, model))
    for tokens in PROFILED if run.is_real else SMALL_PROFILED:
        with run.attempt(f"kernels in {name}, B={tokens}"):
            _profile(run, name, model, tokens)


@torch.inference_mode()
def _decode(run: Run, name: str, model: Decoder, tokens: int) -> Measurement:
    lengths = _decoding(run, tokens)
    return Measurement(
        section=f"decode step of B sequences, context {lengths[0][1]}",
        name=f"{name}, B={tokens}",
        floor=decode_floor(run, model, lengths),
        time=run.clock.time([_step(run, model, lengths)]),
        note=layers_note(run, model),
    )


@torch.inference_mode()
def _prefill(run: Run, name: str, model: Decoder) -> Measurement:
    new = PREFILL if run.is_real else SMALL_PREFILL
    return Measurement(
        section="prefill of T tokens",
        name=f"{name}, T={new}",
        floor=run.ceilings.floor(model.weight_bytes, step_flop(model, [(new, new)])),
        time=run.clock.eager([_step(run, model, [(new, new)])]),
        note=layers_note(run, model),
    )


@torch.inference_mode()
def _profile(run: Run, name: str, model: Decoder, tokens: int) -> None:
    profile(run, f"a decode step in {name}, B={tokens}", _step(run, model, _decoding(run, tokens)))


def profile(run: Run, title: str, step: Callable[[], object]) -> None:
    """Adds the seconds of each of the slowest kernels, as torch's profiler counts them.

    A step takes longer than all kernels together: there are gaps between them.
    """
    steps = PROFILED_STEPS if run.is_real else SMALL_PROFILED_STEPS
    if run.is_real:
        step()  # warms up
    activity = ProfilerActivity.CUDA if run.is_real else ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profiler:
        for _ in range(steps):
            step()
        if run.is_real:
            torch.cuda.synchronize()
    kernels = {event.key: (_microseconds(run, event), event.count) for event in profiler.key_averages()}
    total = sum(each for each, _ in kernels.values())
    for name, (each, count) in sorted(kernels.items(), key=lambda kernel: -kernel[1][0])[:LARGEST]:
        run.add(
            Measurement(
                section=f"kernels of {title}",
                name=name.replace("|", "/")[:60],
                floor=None,
                time=Spread.over([each / steps * 1e-6]),
                note=f"{each / total:.1%}, {count / steps:g} launches",
            )
        )


def _microseconds(run: Run, event: torch.autograd.profiler_util.FunctionEventAvg) -> float:
    return event.self_device_time_total if run.is_real else event.self_cpu_time_total


def _decoding(run: Run, sequences: int) -> Lengths:
    return [(1, CONTEXT if run.is_real else SMALL_CONTEXT)] * sequences


def _step(run: Run, model: Decoder, lengths: Lengths) -> Callable[[], Tensor]:
    """Returns a call that runs one step of such sequences, with a cache of its own."""
    table = random_table(lengths)
    batch = batch_of(lengths, table, model.config.vocab_size, run.device)
    cache = random_cache(model.config, table.numel(), run.dtype, run.device)
    return lambda: model.forward(batch, cache)
