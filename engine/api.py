"""Defines the messages that cross the process boundary. They are plain data, without torch and without text."""

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from typing import Literal


class FinishReason(StrEnum):
    """A FinishReason says why a sequence ended. Exactly one is reported for every accepted request."""

    STOP = "stop"  # a stop token came, or, as the API process decides, a stop string
    LENGTH = "length"  # max_tokens is reached, the context is full, or a limit of its grammar is (Output.error says so)
    ABORT = "abort"  # the client left
    ERROR = "error"  # the engine failed; Output.error says how


@dataclass(frozen=True, slots=True)
class Grammar:
    """A Grammar says what the text of an output must be. `text` is, by kind:

    json      a JSON schema, as JSON
    regex     a regular expression that matches the whole output
    choice    a JSON array of strings, one of which is the output
    grammar   context-free, in Lark's syntax or llama.cpp's (GBNF, `root ::= ...`)

    `before` says what the output has before that, such as reasoning: rules in Lark's syntax, the first of which has
    this name. Nothing stands before where it is empty.
    """

    kind: Literal["json", "regex", "choice", "grammar"]
    text: str
    before: str = ""


@dataclass(frozen=True, slots=True)
class ExpertControl:
    """An ExpertControl changes what the routers of a sparse model choose. Layers are counted in the whole decoder.

    It acts on the logits of a layer's router before the best ones are taken. So the next best expert steps in for one
    that is masked, and the weights of the chosen ones are normalised as always.
    """

    masked: tuple[tuple[int, int], ...] = ()  # (layer, expert): the expert is never chosen in the layer
    biases: tuple[tuple[int, int, float], ...] = ()  # (layer, expert, addend of its logit), each pair once


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """SamplingParams say how the tokens of one sequence are chosen, and when the sequence ends."""

    max_tokens: int  # 0: the prompt is computed, and nothing is generated
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: every token is kept
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0  # 64 bits; the API process draws one if the client gives none
    choice: int = 0  # index among the n choices of a request, which have the same seed and other noise
    logprobs: int | None = None  # None: none; 0: that of the sampled token; k: also the k most likely
    prompt_logprobs: int | None = None  # the same for the prompt's tokens, from the second on
    stop_token_ids: tuple[int, ...] = ()  # end-of-sequence ids included
    min_tokens: int = 0  # no stop token is chosen before so many tokens
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, addend of its logit), each id once
    presence_penalty: float = 0.0  # subtracted from the logit of each token that was generated
    frequency_penalty: float = 0.0  # subtracted once for each time that the token was generated
    # Divides the positive logits of tokens of prompt and output, and multiplies their negative ones.
    repetition_penalty: float = 1.0
    grammar: Grammar | None = None  # None: the text is free
    routes_from: int | None = None  # None: no routes are told; n: those of the positions n, n + 1, ... are
    topic: str = ""  # the label under which the use of experts is counted
    experts: ExpertControl | None = None  # None: the routers choose freely

    @property
    def looks_back(self) -> bool:
        """Returns whether the choice of a token depends on the earlier ones in other ways than through the model."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True, slots=True)
class Request:
    """A Request asks for one sequence. n choices are n requests that share a prompt."""

    id: str
    prompt: Sequence[int]  # in the engine's process an array, which takes a tenth of a tuple's memory
    params: SamplingParams
    cache_salt: str = ""  # cached prefixes are shared only among requests of the same salt

    def __reduce__(self) -> tuple[object, ...]:
        """Sends the prompt in one piece: the engine neither makes an object of each token nor waits for that."""
        return Request, (self.id, array("i", self.prompt), self.params, self.cache_salt)

    caller: str = ""  # an opaque name of who asks; callers take turns where one could delay the others


@dataclass(frozen=True, slots=True)
class Abort:
    """An Abort ends a request. An id that is unknown or finished is no error."""

    id: str


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """TokenLogprobs are natural-log probabilities at one position, before bias, penalties, temperature and filters."""

    logprob: float  # that of the token at the position
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), most likely first
    rank: int | None = None  # that of the token at the position, from 1; None: it is known for prompts only


@dataclass(frozen=True, slots=True)
class Routes:
    """Routes are the experts that consecutive positions of a sequence were sent to, in each of L sparse layers.

    The k experts of a layer come in the order of their weights, the largest first. All numbers are little endian.
    """

    start: int  # the first position
    count: int  # how many positions
    ids: bytes  # int32 [count, L, k]
    weights: bytes  # float32 [count, L, k]


@dataclass(frozen=True, slots=True)
class Output:
    """An Output tells what is new for one request, in token ids. Only the last of a request has a finish reason."""

    id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()  # one for each token id; empty if none were asked for
    cached_tokens: int = 0  # prompt tokens served from the prefix cache
    finish_reason: FinishReason | None = None
    error: str | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # those of the prompt's next tokens, in the order of the prompt
    # The positions whose routes became known, if these are asked for. Each is told once and in order, those from the
    # prefix cache, too. The last token of a sequence is never computed, so its position is not among them.
    routes: Routes | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """EngineStats are gauges and totals of the engine. They are sent with every step."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0  # share of blocks that running sequences hold, 0 to 1
    preemptions: int = 0  # total since start, like the two below
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits: int = 0  # prompt tokens found there


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """An ExpertUse counts what the routers have chosen for the requests of one topic, since the one before it.

    Each position of a sequence is counted when it is computed for the first time; one from the prefix cache is not.
    All numbers are little endian.
    """

    topic: str
    tokens: int
    counts: bytes  # int64 [L, E]: how many of the tokens each expert of each sparse layer served
    repeats: bytes  # int64 [L]: tokens whose first expert is also that of the token before it in the sequence


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """StepOutputs is the one message that the engine sends for each step."""

    outputs: tuple[Output, ...]
    stats: EngineStats
    expert_use: tuple[ExpertUse, ...] = ()  # at most once a second, and whenever a request ends


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """SamplingDefaults are what the checkpoint's generation_config.json recommends. None: it says nothing."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """An ExpertShape says what a sparse model has to choose from."""

    layers: tuple[int, ...]  # which layers of the decoder are sparse
    experts: int  # in each of them
    top_k: int  # that serve a token
    identical: bool  # All experts of each layer have equal weights, so that a choice makes no difference.

    def why_refused(self, control: ExpertControl) -> str | None:
        """Returns why the routers cannot be controlled like that, in a sentence for the client; None if they can."""
        named = [*control.masked, *((layer, expert) for layer, expert, _ in control.biases)]
        for layer, expert in named:
            if layer not in self.layers:
                return f"Layer {layer} has no experts to choose from: take one of {_listed(self.layers)}."
            if not 0 <= expert < self.experts:
                return f"There is no expert {expert}: a layer has the experts 0 to {self.experts - 1}."
        if not all(isfinite(addend) for *_, addend in control.biases):
            return "The bias of an expert must be a finite number; mask the expert to switch it off."
        masked = Counter(layer for layer, _ in set(control.masked))
        for layer, count in masked.items():
            if self.experts - count < self.top_k:
                return (
                    f"Layer {layer} has {self.experts} experts, and each token needs {self.top_k}: "
                    f"mask at most {self.experts - self.top_k} of them."
                )
        return None


def _listed(layers: tuple[int, ...]) -> str:
    """Returns numbers in words: a range where they follow one another."""
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress says how far a long piece of work at start-up has come."""

    what: str  # for instance "loading weights"
    done: int
    total: int


ReportProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Ready:
    """Ready says that the engine serves, and within which bounds. The API process admits requests by them."""

    max_model_len: int  # tokens, prompt and output together
    max_num_seqs: int  # sequences that run at once
    max_waiting: int  # sequences that may queue behind them
    description: tuple[str, ...]  # lines for the log: what was loaded, in which precision, how large it is
    eos_token_ids: tuple[int, ...] = ()
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    vocab_size: int | None = None  # The ids of a prompt are below it. None: the engine does not say.
    experts: ExpertShape | None = None  # None: the model is dense


@dataclass(frozen=True, slots=True)
class Fatal:
    """Fatal says that the engine cannot start, and that starting it again would not help."""

    message: str  # a sentence for the user


ToEngine = Request | Abort
FromEngine = Progress | Ready | Fatal | StepOutputs
