# /// script
# dependencies = ["openai>=3"]
# ///
"""Checks OpenAI's own package with strict validation: an unexpected field fails a check, and so does a missing one."""

import json

from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel
from report import API, KEY, LIMIT, MODEL, QUESTION, run

client = OpenAI(base_url=API, api_key=KEY, _strict_response_validation=True)
MESSAGES = [{"role": "user", "content": QUESTION}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Book(BaseModel):
    title: str
    pages: int


def models() -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def completion() -> None:
    answer = client.completions.create(model=MODEL, prompt=QUESTION, max_tokens=LIMIT, n=2, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].logprobs.text_offset[0] == 0


def completion_stream() -> None:
    call = {"model": MODEL, "prompt": QUESTION, "max_tokens": LIMIT, "seed": 1}
    *chunks, last, usage = client.completions.create(**call, stream=True, stream_options={"include_usage": True})
    assert last.choices[0].text == "" and last.choices[0].finish_reason in {"stop", "length"}
    assert all(chunk.usage is None and chunk.choices[0].finish_reason is None for chunk in chunks)
    whole = client.completions.create(**call)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert usage.usage.completion_tokens == whole.usage.completion_tokens


def document() -> None:
    call = {"model": MODEL, "max_tokens": 4, "echo": True}
    assert client.completions.create(prompt=None, **call).choices[0].text.startswith("<|")
    for adds in (True, False):
        client.completions.create(prompt=QUESTION, extra_body={"add_special_tokens": adds}, **call)


def stops() -> None:
    many = [f"\nGuest {number}:" for number in range(60)]
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=LIMIT, stop=many)
    assert answer.choices[0].finish_reason in {"stop", "length"}
    bias = {"logit_bias": {"1": 100}, "temperature": 0, "max_tokens": 6}  # the token is special in this vocabulary
    told = client.completions.create(model=MODEL, prompt="Hello", stop=["<|im_start|>"], **bias)
    assert (told.choices[0].text, told.choices[0].finish_reason, told.usage.completion_tokens) == ("", "stop", 1)


def random_seed() -> None:
    call = {"model": MODEL, "prompt": QUESTION, "max_tokens": LIMIT, "temperature": 2}
    answers = {client.completions.create(**call, seed=-1).choices[0].text for _ in range(3)}
    assert len(answers) > 1
    assert len({client.completions.create(**call, seed=7).choices[0].text for _ in range(2)}) == 1


def effort() -> None:
    call = {"model": MODEL, "max_completion_tokens": LIMIT, "messages": MESSAGES}
    assert client.chat.completions.create(**call, reasoning_effort="high").choices[0].message.content
    reasoning = {"effort": "minimal", "summary": "auto"}
    assert client.responses.create(
        model=MODEL, input=QUESTION, max_output_tokens=LIMIT, reasoning=reasoning
    ).output_text


def plain() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=LIMIT, seed=1)
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def streamed() -> None:
    call = {"model": MODEL, "messages": MESSAGES, "max_tokens": LIMIT, "seed": 1, "logprobs": True}
    *chunks, ended, last = client.chat.completions.create(**call, stream=True, stream_options={"include_usage": True})
    assert ended.choices[0].finish_reason in {"stop", "length"} and not ended.choices[0].delta.model_fields_set
    whole = client.chat.completions.create(**call)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert last.usage.completion_tokens == len(whole.choices[0].logprobs.content)


def stream_helper() -> None:
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, max_tokens=LIMIT) as stream:
        told = "".join(event.delta for event in stream if event.type == "content.delta")
        assert told == stream.current_completion_snapshot.choices[0].message.content


def errors() -> None:
    codes = {
        "model_not_found": {"model": "another"},
        "decimal_above_max_value": {"temperature": 3},
        "array_above_max_length": {"stop": ["a"] * 129},
        "invalid_type": {"max_tokens": "5"},
        "empty_array": {"messages": []},
        "unsupported_parameter": {"audio": {"voice": "ash", "format": "wav"}},
        "context_length_exceeded": {"max_tokens": 10**6},
    }
    for code, changes in codes.items():
        try:
            client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES} | changes)
        except (BadRequestError, NotFoundError) as error:
            assert error.code == code and error.type == "invalid_request_error"
            assert error.param in {*changes, "messages"}
        else:
            raise AssertionError(f"{changes} was accepted")


def tool() -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, tools=[WEATHER], tool_choice=choice, max_tokens=200
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather" and json.loads(call.function.arguments).keys() == {"city"}
    told = [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"}]
    again = client.chat.completions.create(
        model=MODEL, messages=[*MESSAGES, *told], tools=[WEATHER], tool_choice="none", max_tokens=LIMIT
    )
    assert again.choices[0].finish_reason in {"stop", "length"}


def long_name() -> None:
    named = {"type": "function", "function": WEATHER["function"] | {"name": "mcp__weather.v2__" + "x" * 100}}
    choice = {"type": "function", "function": {"name": named["function"]["name"]}}
    call = {"model": MODEL, "messages": MESSAGES, "tools": [named], "tool_choice": choice}
    answer = client.chat.completions.create(**call, max_tokens=300).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.tool_calls[0].function.name == named["function"]["name"]
    cut = client.chat.completions.create(**call, max_tokens=3).choices[0]
    assert cut.finish_reason == "length"


def tool_stream() -> None:
    with client.chat.completions.stream(
        model=MODEL,
        messages=MESSAGES,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,  # the model may go on calling until it has no tokens left
        max_tokens=200,
    ) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert call.function.name == "get_weather" and json.loads(call.function.arguments).keys() == {"city"}


def any_order() -> None:
    """Frontends and agents send greetings, empty answers, calls without arguments, and notes after results."""
    call = {"id": "0", "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    history = [
        {"role": "assistant", "content": "Hello!"},
        *MESSAGES,
        {"role": "assistant", "content": None},
        *MESSAGES,
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call, call | {"id": "call_1"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "It rains."},
        {"role": "developer", "content": "Be brief."},
        {"role": "tool", "tool_call_id": "unknown", "content": "It snows."},
        {"role": "system", "content": "Be brief."},
    ]
    for length in range(1, len(history) + 1):
        create = client.chat.completions.create
        assert create(model=MODEL, max_tokens=1, messages=history[:length], tools=[WEATHER]).choices[0].message


def structured() -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=Book, max_tokens=200)
    assert isinstance(answer.choices[0].message.parsed, Book)


def responses() -> None:
    answer = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=LIMIT)
    assert answer.output_text and answer.usage.output_tokens <= LIMIT


def responses_stream() -> None:
    *events, last = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=LIMIT, stream=True)
    told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert last.type in {"response.completed", "response.incomplete"} and told == last.response.output_text


if __name__ == "__main__":
    texts = (
        models,
        completion,
        completion_stream,
        document,
        stops,
        random_seed,
        plain,
        streamed,
        stream_helper,
        errors,
    )
    run(*texts, effort, tool, long_name, tool_stream, any_order, structured, responses, responses_stream)
