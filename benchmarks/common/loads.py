"""A Load is what an engine is asked for below HTTP; its rate() makes tokens per second of the answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.model.config import ModelConfig

StepEnd = tuple[float, int]  # seconds since the question, tokens that the step brought


@dataclass(frozen=True, slots=True)
class Load:
    """A Load is a number of prompts that come all at once, with answers of the same length."""

    name: str
    streams: int
    prompt_tokens: int
    max_tokens: int  # 1: the prompts are measured, not the answers

    @property
    def question(self) -> dict[str, int]:
        """Returns the question for the process of benchmarks.common.engine."""
        return {"streams": self.streams, "prompt_tokens": self.prompt_tokens, "max_tokens": self.max_tokens}

    def rate(self, ends: Sequence[StepEnd]) -> float:
        """Returns tokens per second: of the prompts, or of the answers in the steps that serve all streams."""
        if self.max_tokens == 1:
            return self.streams * self.prompt_tokens / ends[-1][0]
        neighbours = zip(ends, ends[1:], strict=False)
        # The first step that brings a token to all streams may also compute a prompt's end, so it is not counted.
        gaps = [after - before for (before, first), (after, tokens) in neighbours if first == tokens == self.streams]
        return self.streams * len(gaps) / sum(gaps)


def touched_share(config: ModelConfig, tokens: int) -> float:
    """Returns the share of a layer's experts that so many tokens need on average, if each chooses evenly and alone.

    A token leaves an expert out with probability 1 - k / E, and so all T of them do with (1 - k / E) ** T.
    """
    return 1 - (1 - config.num_experts_per_tok / config.num_experts) ** tokens
