"""What crosses the process boundary: plain data, frozen and slotted, without torch and without text."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


class FinishReason(StrEnum):
    """Why a sequence ended; exactly one is reported for every accepted request."""

    STOP = "stop"  # a stop token (or, decided by the API process, a stop string)
    LENGTH = "length"  # max_tokens reached, or the context is full
    ABORT = "abort"  # the client left
    ERROR = "error"  # the engine failed; Output.error says how


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the text of an output must be. `text` is, by kind:

    json      a JSON schema, as JSON
    regex     a regular expression that matches the whole output
    choice    a JSON array of strings, one of which is the output
    grammar   context-free, in Lark's syntax or llama.cpp's (GBNF, `root ::= ...`)
    """

    kind: Literal["json", "regex", "choice", "grammar"]
    text: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one sequence are chosen and when they end."""

    max_tokens: int  # 0: the prompt is computed, and nothing generated
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 keeps every token
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0  # 64 bits; the API draws one when the client gives none
    choice: int = 0  # index among the n choices of one request: same seed, other noise
    logprobs: int | None = None  # None: none; 0: the sampled token's; k: its and the k most likely
    prompt_logprobs: int | None = None  # the same, of the prompt's tokens from the second on
    stop_token_ids: tuple[int, ...] = ()  # end-of-sequence ids included
    min_tokens: int = 0  # before these are generated no stop token is
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit), each id once
    presence_penalty: float = 0.0  # taken off the logit of each token that was generated
    frequency_penalty: float = 0.0  # the same, as often as it was generated
    repetition_penalty: float = 1.0  # divides the positive logits of tokens of prompt and output, multiplies the others
    grammar: Grammar | None = None  # tokens that would leave it are never chosen

    @property
    def looks_back(self) -> bool:
        """Whether the next token depends on the earlier ones other than through the model."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate. n choices are n requests that share a prompt."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    cache_salt: str = ""  # prefixes are shared only among requests of the same salt


@dataclass(frozen=True, slots=True)
class Abort:
    """Forget a request; an unknown or finished id is not an error."""

    id: str


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities at one position, before bias, penalties, temperature, filters."""

    logprob: float  # of the token that stands there
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), most likely first
    rank: int | None = None  # of the token that stands there, from 1; known of a prompt's tokens


@dataclass(frozen=True, slots=True)
class Output:
    """What is new of one request. The last one, and only the last, has a finish reason."""

    id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()  # one per token id, or empty when none were asked for
    cached_tokens: int = 0  # prompt tokens served from the prefix cache
    finish_reason: FinishReason | None = None
    error: str | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of the prompt's next tokens: they come as they are computed


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges and running totals of the engine, sent with every step."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0  # share of blocks that running sequences hold, 0 to 1
    preemptions: int = 0  # total since start, like the two below
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits: int = 0  # prompt tokens found there


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """Everything one step tells the API process, in one message."""

    outputs: tuple[Output, ...]
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What the checkpoint's generation_config.json recommends; None where it is silent."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long piece of start-up work has come."""

    what: str  # "loading weights"
    done: int
    total: int


ReportProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine serves, and these are its bounds: the API process admits requests by them."""

    max_model_len: int  # tokens, prompt and output together
    max_num_seqs: int  # sequences that run at once
    max_waiting: int  # sequences that may queue behind them
    description: tuple[str, ...]  # lines for the log: what was loaded, as what, how large
    eos_token_ids: tuple[int, ...] = ()
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)


@dataclass(frozen=True, slots=True)
class Fatal:
    """The engine cannot start, and starting it again would not help: a sentence for the user."""

    message: str


ToEngine = Request | Abort
FromEngine = Progress | Ready | Fatal | StepOutputs
