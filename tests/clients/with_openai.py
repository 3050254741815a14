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
    chunks = list(client.completions.create(model=MODEL, prompt=QUESTION, max_tokens=LIMIT, stream=True))
    assert chunks[-1].choices[0].finish_reason in {"stop", "length"}


def plain() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=LIMIT, seed=1)
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def streamed() -> None:
    call = {"model": MODEL, "messages": MESSAGES, "max_tokens": LIMIT, "seed": 1, "logprobs": True}
    *chunks, last = client.chat.completions.create(**call, stream=True, stream_options={"include_usage": True})
    whole = client.chat.completions.create(**call)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert last.usage.completion_tokens == len(whole.choices[0].logprobs.content)


def stream_helper() -> None:
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, max_tokens=LIMIT) as stream:
        told = "".join(event.delta for event in stream if event.type == "content.delta")
        assert told == stream.current_completion_snapshot.choices[0].message.content


def errors() -> None:
    for expected, changes in ((NotFoundError, {"model": "another"}), (BadRequestError, {"temperature": 3})):
        try:
            client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES} | changes)
        except expected as error:
            assert error.param in changes and error.type == "invalid_request_error"
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
    texts = (models, completion, completion_stream, plain, streamed, stream_helper, errors)
    run(*texts, tool, tool_stream, structured, responses, responses_stream)
