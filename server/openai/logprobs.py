"""Writes log-probabilities as OpenAI's API does: as parallel arrays in completions, as objects with bytes in chats."""

from collections.abc import Sequence

from typing_extensions import TypedDict

from octavo.engine.api import TokenLogprobs
from octavo.server.text.tokenizer import Tokenizer

LOWEST = -9999.0  # JSON has no -inf

Scored = Sequence[tuple[int, TokenLogprobs]]  # (token id, its log-probabilities)
Echoed = Sequence[tuple[int, TokenLogprobs | None]]  # None for the first token of a text


class CompletionLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[ChatTokenLogprob]
    refusal: None


class PromptLogprob(TypedDict):
    """Is the form in which vLLM tells the log-probability of a token of the prompt."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]  # one dict by token id for each token; None for the first


def prompt_logprobs(
    tokenizer: Tokenizer, prompt: Sequence[int], entries: Sequence[TokenLogprobs], count: int
) -> PromptLogprobs:
    """Returns those of each token and of the `count` likeliest in its place; `entries` begin with the second token."""
    found: PromptLogprobs = [None]
    for id, entry in zip(prompt[1:], entries, strict=True):
        ranked = ((candidate, logprob, rank) for rank, (candidate, logprob) in enumerate(entry.top[:count], 1))
        found.append(
            {
                str(candidate): {
                    "logprob": _finite(logprob),
                    "rank": rank,
                    "decoded_token": tokenizer.token_text(candidate),
                }
                for candidate, logprob, rank in ((id, entry.logprob, entry.rank), *ranked)
            }
        )
    return found


def completion_logprobs(tokenizer: Tokenizer, scored: Echoed, offset: int) -> tuple[CompletionLogprobs, int]:
    """Returns the arrays, and where their text ends; text_offset counts characters from `offset` on."""
    tokens = [tokenizer.token_text(id) for id, _ in scored]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    logprobs: CompletionLogprobs = {
        "tokens": tokens,
        "token_logprobs": [None if entry is None else _finite(entry.logprob) for _, entry in scored],
        "top_logprobs": [None if entry is None else _top_by_text(tokenizer, id, entry) for id, entry in scored],
        "text_offset": offsets,
    }
    return logprobs, offset


def _top_by_text(tokenizer: Tokenizer, id: int, entry: TokenLogprobs) -> dict[str, float]:
    """Returns the likeliest tokens and the sampled one; if two have the same text, the likelier of them."""
    top: dict[str, float] = {}
    for candidate, logprob in (*entry.top, (id, entry.logprob)):
        top.setdefault(tokenizer.token_text(candidate), _finite(logprob))
    return top


def chat_logprobs(tokenizer: Tokenizer, scored: Scored) -> ChatLogprobs:
    content: list[ChatTokenLogprob] = [
        {
            **_chat_entry(tokenizer, id, entry.logprob),
            "top_logprobs": [_chat_entry(tokenizer, candidate, logprob) for candidate, logprob in entry.top],
        }
        for id, entry in scored
    ]
    return {"content": content, "refusal": None}


def _chat_entry(tokenizer: Tokenizer, id: int, logprob: float) -> TopLogprob:
    """Returns a token as OpenAI's chat writes it: a part of a character is \\xe4\\xbd, without the `bytes:` before."""
    token, data = tokenizer.token_text(id, marker=""), list(tokenizer.token_bytes(id))
    return {"token": token, "logprob": _finite(logprob), "bytes": data}


def _finite(logprob: float) -> float:
    return logprob if logprob > LOWEST else LOWEST  # NaN is not greater either
