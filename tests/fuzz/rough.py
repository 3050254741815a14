"""Makes requests as no specification describes them: odd values, odd orders, broken bytes, hostile grammars."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.fuzz import constraints, conversations
from tests.fuzz.operations import OURS, Operation
from tests.fuzz.values import mangled, odd_text, spoiled, written
from tests.server.text.real_templates import CHATML, GEMMA, LLAMA_31, MISTRAL

Body = dict[str, Any]
TEMPLATES = {"mistral": MISTRAL, "chatml": CHATML, "llama_3.1": LLAMA_31, "gemma": GEMMA}
CONTENT_TYPES = (
    "application/json",
    "application/json; charset=utf-8",
    "application/json; charset=utf-16",
    "text/plain",
)
ENCODINGS = ("identity", "gzip", "deflate", "zstd", "nonsense")


@dataclass(frozen=True)
class Rough:
    """A Rough is a request; its number makes it again."""

    number: int
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def operation(self) -> Operation:
        return Operation(OURS, "POST", self.path)


def rough(number: int, model: str, most_tokens: int) -> Rough:
    """Returns the request of this number: always the same one."""
    random = Random(number)
    path = random.choice(list(BODIES))
    body: Any = BODIES[path](random, most_tokens)
    for _ in range(random.choice((0, 0, 0, 1, 1, 2))):
        body = spoiled(random, body)
    data = written(_bounded(body, model, most_tokens) if isinstance(body, dict) else body).encode()
    data = mangled(random, data) if random.random() < 0.05 else data
    return Rough(number, path, data, _headers(random))


def _bounded(body: Body, model: str, most_tokens: int) -> Body:
    """Names the model, and keeps the answer short where a limit has become a number that is not odd."""
    limits = [name for name in ("max_tokens", "max_output_tokens") if isinstance(body.get(name), int)]
    return {"model": model} | body | dict.fromkeys(limits, most_tokens)


def _headers(random: Random) -> dict[str, str]:
    usual = {"content-type": "application/json"}
    if random.random() < 0.03:
        return usual | {"content-type": random.choice(CONTENT_TYPES)}
    return usual | ({"content-encoding": random.choice(ENCODINGS)} if random.random() < 0.03 else {})


def _chat(random: Random, most_tokens: int) -> Body:
    body = {"messages": conversations.chat(random), "max_tokens": most_tokens} | _common(random)
    if random.random() < 0.4:
        body["tools"] = conversations.chat_tools(random)
        named = {"type": "function", "function": {"name": random.choice(conversations.TOOLS)}}
        body["tool_choice"] = random.choice(("auto", "auto", "none", "required", named))
    if random.random() < 0.1:
        body["continue_final_message"] = True
        body["add_generation_prompt"] = False
    return body | (constraints.constraint(random) if random.random() < 0.3 else {}) | _logprobs(random, True)


def _completion(random: Random, most_tokens: int) -> Body:
    prompt: Any = random.choice(("Hello", ["a", "b"], [3, 4, 5], [[3], [4]], None, odd_text(random)))
    body = {"prompt": prompt, "max_tokens": most_tokens, "echo": random.random() < 0.2} | _common(random)
    return body | (constraints.constraint(random) if random.random() < 0.3 else {}) | _logprobs(random, 2)


def _response(random: Random, most_tokens: int) -> Body:
    given: Any = conversations.items(random) if random.random() < 0.8 else odd_text(random)
    body: Body = {"input": given, "max_output_tokens": most_tokens, "instructions": random.choice((None, "Be brief."))}
    if random.random() < 0.4:
        body["tools"] = conversations.response_tools(random)
    if random.random() < 0.3:
        body["text"] = {"format": {"type": "json_schema", "name": "x", "schema": constraints.schema(random)}}
    return body | _sampling(random) | {"stream": random.random() < 0.4}


def _messages(random: Random, most_tokens: int) -> Body:
    body = {"messages": conversations.blocks(random), "max_tokens": most_tokens, "stream": random.random() < 0.4}
    if random.random() < 0.4:
        body["tools"] = conversations.message_tools(random)
    if random.random() < 0.3:
        body["system"] = random.choice(("Be brief.", [{"type": "text", "text": odd_text(random)}]))
    return body | ({"stop_sequences": [odd_text(random)[:50]]} if random.random() < 0.1 else {})


def _template(random: Random, most_tokens: int) -> Body:
    return _chat(random, most_tokens)


def _tokenize(random: Random, most_tokens: int) -> Body:
    given = {"prompt": odd_text(random)} if random.random() < 0.5 else {"messages": conversations.chat(random)}
    return given | {"return_token_strs": random.random() < 0.5}


def _detokenize(random: Random, most_tokens: int) -> Body:
    return {"tokens": [random.randrange(259) for _ in range(random.choice((0, 1, 9, 1000)))]}


def _common(random: Random) -> Body:
    ways: tuple[Body, ...] = ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}})
    stops = ([], ["\n"], ["</s>"], [odd_text(random)[:100]], ["ab"] * 9)
    return _sampling(random) | random.choice(ways) | {"stop": random.choice(stops), "n": random.choice((1, 1, 1, 2))}


def _sampling(random: Random) -> Body:
    values: Mapping[str, tuple[Any, ...]] = {
        "temperature": (0, 0.7, 1, 2, 1e-9),
        "top_p": (1, 0.5, 1e-9),
        "seed": (0, -1, 2**63 - 1),
        "frequency_penalty": (0, 2, -2),
        "repetition_penalty": (1, 1e-3, 9),
        "logit_bias": ({"3": 100}, {"4": -100}, {"999999999": 1}),
        "min_tokens": (0, 2),
    }
    return {name: random.choice(values[name]) for name in random.sample(list(values), random.choice((0, 0, 1, 2)))}


def _logprobs(random: Random, wanted: int | bool) -> Body:
    return {"logprobs": wanted} if random.random() < 0.2 else {}


BODIES: Mapping[str, Callable[[Random, int], Body]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/responses": _response,
    "/v1/messages": _messages,
    "/apply-template": _template,
    "/tokenize": _tokenize,
    "/detokenize": _detokenize,
}
