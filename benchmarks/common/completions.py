"""Clients that come all at once, with prompts of token ids: what every server is asked in the same words."""

import asyncio
from time import perf_counter

from benchmarks.common.client import Target, streamed
from benchmarks.common.figures import Round, Sample


async def burst(target: Target, prompts: list[list[int]]) -> Round:
    """A client for each prompt; all send at the same moment."""
    start = perf_counter()
    samples = await asyncio.gather(*(complete(target, prompt) for prompt in prompts))
    return Round(tuple(samples), perf_counter() - start)


async def complete(target: Target, prompt: list[int]) -> Sample:
    """Sends one greedy request of a fixed length and notes when each piece of text arrives."""
    asked = {"prompt": prompt, "ignore_eos": True}
    sample = await streamed(target, "completions", asked, lambda choice: choice.get("text"))
    if sample.error is None and not (sample.arrivals and sample.tokens == target.max_tokens):
        return Sample(error=f"{sample.tokens} tokens came, {target.max_tokens} were asked for")
    return sample
