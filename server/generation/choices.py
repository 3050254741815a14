"""Turns the tokens of one choice into text, log-probabilities and a reason why it ended."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from octavo.engine.api import FinishReason, Output, Request, Routes, TokenLogprobs
from octavo.server.generation.routes import split
from octavo.server.text.stop import StopStrings
from octavo.server.text.tokenizer import Detokenizer, Tokenizer


@dataclass(frozen=True, slots=True)
class Delta:
    """A Delta is what a client learns next about one choice."""

    index: int
    text: str
    logprobs: tuple[tuple[int, TokenLogprobs], ...] = ()  # (token id, its log-probabilities)
    finish_reason: FinishReason | None = None
    echoed: tuple[tuple[int, TokenLogprobs | None], ...] = ()  # the same for an echoed prompt; None for its first token
    cut: str | None = None  # why the choice ends early, if it is for another reason than max_tokens and the context
    tokens: int = 0  # how many came since the delta before
    routes: tuple[Routes, ...] = ()  # those of the next positions, if they were asked for


def joined(deltas: Sequence[Delta]) -> Delta:
    """Returns one delta that tells what several of one choice do."""
    return Delta(
        index=deltas[-1].index,
        text="".join(delta.text for delta in deltas),
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        finish_reason=deltas[-1].finish_reason,
        echoed=tuple(entry for delta in deltas for entry in delta.echoed),
        cut=deltas[-1].cut,
        tokens=sum(delta.tokens for delta in deltas),
        routes=tuple(each for delta in deltas for each in delta.routes),
    )


@dataclass(frozen=True, slots=True)
class Display:
    """Says what the text of a choice consists of."""

    stops: Sequence[str] = ()  # strings that end the text
    include_stop: bool = False  # the text contains what ended it, be it a stop string or a token
    shown: frozenset[int] = frozenset()  # the special tokens whose text is shown; that of others is not
    echo: str | None = None  # the prompt's text, if the text begins with it


class Choice:
    """Makes the deltas of one choice. Streamed or not, its text and its log-probabilities are the join of theirs.

    tokens    t0   t1   t2   t3   t4 | t5        the stop string is complete within t4: t5 is dropped
    text      He  llo    #    ##                 t2, t3 are held back, and with them their log-probabilities
    delta    [t0] [t1]          [t2 t3 t4]
    """

    def __init__(self, index: int, request: Request, tokenizer: Tokenizer, display: Display) -> None:
        self.index = index
        self.request = request
        self.completion_tokens = 0  # includes the token that ended the choice
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.cut: str | None = None  # as in Delta
        self._told = 0  # how many of the tokens were in a delta
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, request.prompt, display.shown)
        self._shown = display.shown
        self._stops = StopStrings(display.stops, display.include_stop)
        self._include_stop = display.include_stop
        self._echo = display.echo
        self._total = 0.0  # the log-probability of all tokens
        self.prompt_logprobs: list[TokenLogprobs] = []  # from the prompt's second token on, if asked for
        self._logprobs: list[tuple[int, TokenLogprobs]] = []  # belong to tokens whose text was not shown yet
        self._routes: list[Routes] = []  # were in no delta yet

    @property
    def stop_string(self) -> str | None:
        """Returns the stop string that ended the choice, or None if none did."""
        return self._stops.matched

    @property
    def mean_logprob(self) -> float:
        """Returns the mean over all tokens, with the one that ended the choice; 0 without log-probabilities."""
        return self._total / max(self.completion_tokens, 1)

    def push(self, output: Output) -> Delta | None:
        """Returns None when there is nothing to show. A stop string may end the choice before the engine does."""
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        text = self._text_of(output)
        if output.finish_reason is not None and self.finish_reason is None:
            text += self._end(output.finish_reason)
            self.cut = output.error if self.finish_reason is FinishReason.LENGTH else None
        self.prompt_logprobs += output.prompt_logprobs
        self._routes += () if output.routes is None else (output.routes,)
        echoed: tuple[tuple[int, TokenLogprobs | None], ...] = ()
        if self._echo is not None and (output.token_ids or self.finish_reason is not None):  # the prompt is complete
            text, self._echo, echoed = self._echo + text, None, self._echoed()
        if not text and not echoed and self.finish_reason is None:
            return None
        logprobs, self._logprobs = tuple(self._logprobs), []
        tokens, self._told = self.completion_tokens - self._told, self.completion_tokens
        return Delta(self.index, text, logprobs, self.finish_reason, echoed, self.cut, tokens, self._told_routes())

    def _told_routes(self) -> tuple[Routes, ...]:
        """Returns the routes that are new to the client.

        The last token of an answer was never computed. An engine that had gone on beyond it has told of more.
        """
        end = len(self.request.prompt) + max(self.completion_tokens - 1, 0)
        parts = [split(routes, end) for routes in self._routes]
        self._routes = [after for _, after in parts if after.count]
        return tuple(before for before, _ in parts if before.count)

    def _echoed(self) -> tuple[tuple[int, TokenLogprobs | None], ...]:
        first, *others = self.request.prompt
        count = self.request.params.logprobs or 0
        entries = (replace(entry, top=entry.top[:count]) for entry in self.prompt_logprobs)
        return (first, None), *zip(others, entries, strict=False)  # there are no entries if only the text is echoed

    def _text_of(self, output: Output) -> str:
        """Returns the text that the tokens release, up to the first stop string."""
        shown = ""
        for position, id in enumerate(output.token_ids):
            self.completion_tokens += 1
            if output.logprobs:
                self._logprobs.append((id, output.logprobs[position]))
                self._total += output.logprobs[position].logprob
            ends = self._ends_with_token(output, position)
            if hidden := "" if id in self._shown else self._tokenizer.special_text(id):
                shown += self._show(hidden, hidden=True)
            elif not ends:
                shown += self._show(self._detokenizer.push(id))
            if ends or self.finish_reason is not None:
                break
        return shown

    def _ends_with_token(self, output: Output, position: int) -> bool:
        """Returns whether the token ended the sequence. It is no text then, even if the tokenizer calls it ordinary."""
        if self._include_stop:
            return False
        is_last = position == len(output.token_ids) - 1 and output.finish_reason is FinishReason.STOP
        return is_last and output.token_ids[position] in self.request.params.stop_token_ids

    def _show(self, text: str, hidden: bool = False) -> str:
        """Returns what of the text is certain. No stop string within the first min_tokens tokens counts.

        Hidden text is that of a special token: it may end the choice, but it is not shown.
        """
        if self.completion_tokens <= self.request.params.min_tokens:
            return "" if hidden else text
        shown, stopped = self._stops.push(text, hidden)
        if stopped:
            self.finish_reason = FinishReason.STOP
        return shown

    def _end(self, reason: FinishReason) -> str:
        """Returns what was held back, since nothing follows; the stop string may still be in it."""
        shown = self._show(self._detokenizer.flush())
        if self.finish_reason is None:
            self.finish_reason = reason
            shown += self._stops.flush()
        return shown
