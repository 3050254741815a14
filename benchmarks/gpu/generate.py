"""The engine beside transformers' `generate`, both with random weights in bfloat16, of one shape and as many layers."""

from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.figures import Spread
from benchmarks.gpu.engine import PROMPT, SMALL_PROMPT, Driver
from benchmarks.gpu.run import Run
from benchmarks.gpu.steps import decode_floor, layers_note, model_of
from benchmarks.gpu.table import Measured
from octavo.model.config import ModelConfig

SEQUENCES, SMALL_SEQUENCES = (1, 32), (2,)
TOKENS, SMALL_TOKENS = 32, 2  # that are generated behind the first one
TIMES = 3
EXPERTS = ("grouped_mm", "eager")  # the fastest counts; "batched_mm" copies the experts for each token of a prompt


def measure(run: Run) -> None:
    """Seconds of a step of all sequences."""
    if find_spec("transformers") is None:
        run.say("generate is left out: transformers is not installed")
        return
    counts = SEQUENCES if run.is_real else SMALL_SEQUENCES
    rows = _ours(run, counts)
    run.forget()
    peer = _peer(run, rows[0][1])
    for sequences, (row, _) in zip(counts, rows, strict=True):
        with run.attempt(f"generate, B={sequences}"):
            name, seconds = _fastest(run, peer, sequences)
            row.others[f"transformers generate ({name})"] = seconds
        run.add(row)


def _ours(run: Run, counts: tuple[int, ...]) -> list[tuple[Measured, ModelConfig]]:
    """The rows, and the shape of what was measured; the model is gone by then."""
    model = model_of(run, "bf16")
    driver, context = Driver.of(run, model, counts), PROMPT + TOKENS
    return [
        (
            Measured(
                section="generating, a step of B sequences by the clock on the wall",
                name=f"bf16, B={sequences}",
                floor=decode_floor(run, model, [(1, context)] * sequences),
                time=driver.decode(sequences),
                note=layers_note(run, model),
            ),
            model.config,
        )
        for sequences in counts
    ]


def _peer(run: Run, shape: ModelConfig) -> Any:
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        num_local_experts=shape.num_experts,
        num_experts_per_tok=shape.num_experts_per_tok,
        max_position_embeddings=shape.max_position_embeddings,
    )
    with run.device:
        model = AutoModelForCausalLM.from_config(config, dtype=run.dtype).eval()
    model.generation_config.eos_token_id = None  # all sequences go on to the end
    model.generation_config.pad_token_id = 0
    run.say(f"made {shape.num_hidden_layers} layers for transformers")
    return model


def _fastest(run: Run, model: Any, sequences: int) -> tuple[str, Spread]:
    """The implementation with the shortest step, and that."""
    found = {}
    for name in EXPERTS:
        model.set_experts_implementation(name)
        found[name] = _seconds(run, model, sequences)
    name = min(found, key=lambda name: found[name].median)
    return name, found[name]


def _seconds(run: Run, model: Any, sequences: int) -> Spread:
    """Of a step: what more tokens take beyond the first one, which has the prompt before it."""
    prompt, tokens = (PROMPT, TOKENS) if run.is_real else (SMALL_PROMPT, SMALL_TOKENS)
    ids = torch.randint(model.config.vocab_size, (sequences, prompt), device=run.device)
    _generate(run, model, ids, 2)
    once = min(_generate(run, model, ids, 1) for _ in range(TIMES))
    return Spread.over((_generate(run, model, ids, 1 + tokens) - once) / tokens for _ in range(TIMES))


@torch.inference_mode()
def _generate(run: Run, model: Any, ids: Tensor, tokens: int) -> float:
    started = perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=True, top_k=0)
    if run.is_real:
        torch.cuda.synchronize()
    return perf_counter() - started
