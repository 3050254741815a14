"""Describes what clients send to /v1/completions."""

from collections.abc import Sequence
from typing import Annotated, cast

from pydantic import Field

from octavo.server.generation.parameters import UNSUPPORTED
from octavo.server.generation.request import MAX_LOGPROBS, GenerationRequest, TokenIds
from octavo.server.http.errors import InvalidRequest
from octavo.server.http.fields import refused_as

MAX_BEST_OF = 20  # OpenAI's limit


Strings = Annotated[list[str], Field(fail_fast=True)]
Prompt = Annotated[
    str | Strings | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)],
    refused_as("must be a string, an array of token ids, or an array of strings or of arrays of token ids"),
]


class CompletionRequest(GenerationRequest):
    prompt: Prompt | None
    """Gives the prompt as text or token ids; an array of either asks for an answer to each.

    Null means the beginning of a document: the token that begins a text or, where there is none, that ends one.
    """
    add_special_tokens: bool | None = None
    """Adds to a prompt of text the tokens that begin one, usually a BOS. The default is true. This is an extension."""
    max_tokens: int | None = Field(None, ge=0)
    """Limits the tokens of a choice; 0 only scores the prompt. The default is 16."""
    best_of: int | None = Field(None, ge=1, le=MAX_BEST_OF)
    """Makes so many choices, and returns the n with the highest mean log-probability. The default is n."""
    echo: bool | None = None
    """Puts the prompt before the text, and its log-probabilities before the text's. The default is false."""
    suffix: str | None = None
    """Is refused: this model cannot fill in text between two others."""
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    """Asks for the log-probabilities of each token and of so many of the likeliest tokens in its place.

    They are the model's own: before bias, penalties, temperature and filters. OpenAI allows 5.
    """

    def check(self) -> None:
        super().check()
        n, best_of = self.n or 1, self.best_of
        if best_of is not None and best_of < n:
            raise InvalidRequest("{param} should be at least n, which is {n}.", "best_of", n=n)
        if best_of is not None and best_of > n and self.stream:
            raise InvalidRequest("{param} cannot be streamed unless it equals n: the best is known last.", "best_of")
        if self.suffix:
            raise InvalidRequest(
                "{param} needs a model with fill-in tokens, and this one has none; leave it out.", "suffix", UNSUPPORTED
            )

    def candidates(self) -> tuple[int, str]:
        return super().candidates() if self.best_of is None else (self.best_of, "best_of")

    def prompts(self) -> Sequence[str | list[int] | None]:
        """Returns one prompt or several; an array of numbers is one. None is the beginning of a document."""
        if self.prompt is None or isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast(list[str] | list[list[int]], self.prompt)
