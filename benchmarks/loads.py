"""What an engine is asked for below HTTP, and how its answer becomes tokens a second."""

from collections.abc import Sequence
from dataclasses import dataclass

Step = tuple[float, int]  # seconds since the question, tokens that were generated


@dataclass(frozen=True, slots=True)
class Load:
    """Prompts that come all at once, and answers of the same length."""

    name: str
    streams: int
    prompt_tokens: int
    max_tokens: int  # 1: what is measured is the prompts

    def rate(self, steps: Sequence[Step]) -> float:
        """Tokens a second: of the prompts, or of the steps of answers alone, while all streams go on."""
        if self.max_tokens == 1:
            return self.streams * self.prompt_tokens / steps[-1][0]
        pairs = zip(steps, steps[1:], strict=False)
        # The first step that brings a token to all may have computed a prompt's end, too: only those after it count.
        gaps = [after - before for (before, first), (after, tokens) in pairs if first == tokens == self.streams]
        return self.streams * len(gaps) / sum(gaps)
