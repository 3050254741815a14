"""Whole steps on a GPU: decoding and prefill through all layers, or as many as fit, which the row then says."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.common.batches import Rows, batch_of, random_cache, seen
from benchmarks.common.loads import touched_share
from benchmarks.gpu.inputs import layers_that_fit, random_model
from benchmarks.gpu.profile import profile
from benchmarks.gpu.run import Run
from benchmarks.gpu.table import Measured
from octavo.model.decoder import Decoder
from octavo.model.kernels.gpu.decoder import GpuDecoder
from octavo.model.kernels.gpu.ops import GpuOps
from octavo.model.kv_cache import KVCache
from octavo.model.weights.precision import Precision

CONTEXT, SMALL_CONTEXT = 512, 24  # tokens of each sequence that decodes
PREFILL, SMALL_PREFILL = 4096, 12  # new tokens
WEIGHTS_SHARE = 0.75  # of what is free; the rest is for 256 sequences' keys and values, and what a step holds
PROFILED, SMALL_PROFILED = (1, 64), (1,)  # sequences of a step whose kernels are shown one by one
NOT_SERVED = "int8-groups"  # there is no flag for it


def measure(run: Run) -> None:
    """Decoding with every number of sequences and one prefill, in every kind of weights."""
    for name in served(run):
        with run.attempt(f"steps in {name}"):
            _kind(run, name)
        run.forget()


def served(run: Run) -> tuple[str, ...]:
    """The kinds of weights that a model can be served with."""
    return tuple(name for name in run.kinds if name != NOT_SERVED)


def model_of(run: Run, name: str) -> Decoder:
    """Random weights of the shape that is measured, on the device, behind the kernels."""
    kind = run.kind(name)
    precision = Precision(run.dtype, kind, run.dtype)
    layers = layers_that_fit(run.config, precision, int(WEIGHTS_SHARE * run.available()))
    config = replace(run.config, num_hidden_layers=layers)
    model = random_model(config, run.dtype, kind, run.device, lambda: None)
    ops = GpuOps.on(config, run.device) if run.is_real else GpuOps(config, run.processors, run.arch)
    model = replace(model, ops=ops.ops())
    run.say(f"made {layers} layers in {name}")
    return replace(model, fused=GpuDecoder.of(model, run.arch))


def layers_note(run: Run, model: Decoder) -> str:
    """What must be said where not all of the model was there."""
    there, whole = model.config.num_hidden_layers, run.config.num_hidden_layers
    return "" if there == whole else f"{there} of {whole} layers"


def step_bytes(model: Decoder, tokens: int) -> float:
    """What a step reads of the weights: of the experts those that are expected to be chosen, and all else once."""
    experts = sum(
        each.nbytes for layer in model.layers for each in (*layer.moe.experts.gate_up, *layer.moe.experts.down)
    )
    read = experts * touched_share(model.config, tokens)
    return model.weight_bytes - experts - model.embedding.table.nbytes + read


def step_flop(model: Decoder, rows: Rows) -> float:
    """Of (new tokens, length) sequences whose last tokens get logits."""
    config = model.config
    table = config.vocab_size * config.hidden_size
    each = config.num_active_parameters() - 2 * table  # without the embedding, which is looked up, and the head
    attention = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return 2.0 * each * sum(new for new, _ in rows) + 2.0 * table * len(rows) + 4.0 * attention * seen(rows)


def decode_floor(run: Run, model: Decoder, rows: Rows) -> float:
    """Seconds of a step in which each of these sequences has one new token."""
    cached = sum(end for _, end in rows) * KVCache.bytes_per_token(model.config, run.dtype)
    return run.ceilings.floor(step_bytes(model, len(rows)) + cached, step_flop(model, rows))


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
def _decode(run: Run, name: str, model: Decoder, tokens: int) -> Measured:
    rows = _decoding(run, tokens)
    return Measured(
        section=f"decode step of B sequences, context {rows[0][1]}",
        name=f"{name}, B={tokens}",
        floor=decode_floor(run, model, rows),
        time=run.clock.time([_step(run, model, rows)]),
        note=layers_note(run, model),
    )


@torch.inference_mode()
def _prefill(run: Run, name: str, model: Decoder) -> Measured:
    new = PREFILL if run.is_real else SMALL_PREFILL
    return Measured(
        section="prefill of T tokens",
        name=f"{name}, T={new}",
        floor=run.ceilings.floor(model.weight_bytes, step_flop(model, [(new, new)])),
        time=run.clock.eager([_step(run, model, [(new, new)])]),
        note=layers_note(run, model),
    )


@torch.inference_mode()
def _profile(run: Run, name: str, model: Decoder, tokens: int) -> None:
    profile(run, f"a decode step in {name}, B={tokens}", _step(run, model, _decoding(run, tokens)))


def _decoding(run: Run, sequences: int) -> Rows:
    return [(1, CONTEXT if run.is_real else SMALL_CONTEXT)] * sequences


def _step(run: Run, model: Decoder, rows: Rows) -> Callable[[], Tensor]:
    """One step of such sequences, with a cache of its own."""
    batch, blocks = batch_of(rows, model.config.vocab_size, run.device)
    cache = random_cache(model.config, blocks, run.dtype, run.device)
    return lambda: model.forward(batch, cache)
