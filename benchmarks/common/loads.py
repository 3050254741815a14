"""What an engine is asked for below HTTP, and how its answer becomes tokens a second."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.model.config import ModelConfig

Step = tuple[float, int]  # seconds since the question, tokens that were generated


@dataclass(frozen=True, slots=True)
class Load:
    """Prompts that come all at once, and answers of the same length."""

    name: str
    streams: int
    prompt_tokens: int
    max_tokens: int  # 1: what is measured is the prompts

    @property
    def question(self) -> dict[str, int]:
        """As benchmarks.common.engine is asked it."""
        return {"streams": self.streams, "prompt_tokens": self.prompt_tokens, "max_tokens": self.max_tokens}

    def rate(self, steps: Sequence[Step]) -> float:
        """Tokens a second: of the prompts, or of the steps of answers alone, while all streams go on."""
        if self.max_tokens == 1:
            return self.streams * self.prompt_tokens / steps[-1][0]
        pairs = zip(steps, steps[1:], strict=False)
        # The first step that brings a token to all may have computed a prompt's end, too: only those after it count.
        gaps = [after - before for (before, first), (after, tokens) in pairs if first == tokens == self.streams]
        return self.streams * len(gaps) / sum(gaps)


def touched_share(config: ModelConfig, tokens: int) -> float:
    """How many of a layer's experts so many tokens need on average, when each chooses evenly and by itself.

    A token leaves an expert out with probability 1 - k / E, and so all T of them do with (1 - k / E) ** T.
    """
    return 1 - (1 - config.num_experts_per_tok / config.num_experts) ** tokens
