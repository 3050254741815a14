# /// script
# dependencies = ["anthropic"]
# ///
"""Checks Anthropic's own package over /v1/messages, with strict validation."""

from anthropic import Anthropic, BadRequestError, NotFoundError
from report import KEY, LIMIT, MODEL, QUESTION, URL, run

client = Anthropic(base_url=URL, api_key=KEY, _strict_response_validation=True)
CALL = {"model": MODEL, "max_tokens": LIMIT, "messages": [{"role": "user", "content": QUESTION}]}
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def plain() -> None:
    answer = client.messages.create(**CALL, system="Be brief.")
    assert answer.content[0].text and answer.usage.output_tokens <= LIMIT


def streamed() -> None:
    with client.messages.stream(**CALL) as stream:
        told = "".join(stream.text_stream)
        assert told == stream.get_final_message().content[0].text


def counted() -> None:
    count = client.messages.count_tokens(model=MODEL, messages=CALL["messages"])
    usage = client.messages.create(**CALL).usage
    assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def errors() -> None:
    for expected, changes in ((NotFoundError, {"model": "another"}), (BadRequestError, {"max_tokens": -1})):
        try:
            client.messages.create(**CALL | changes)
        except expected as error:
            assert error.body["type"] == "error"
        else:
            raise AssertionError(f"{changes} was accepted")


def tool() -> None:
    call = CALL | {"max_tokens": 64, "tools": [WEATHER], "tool_choice": {"type": "tool", "name": "get_weather"}}
    answer = client.messages.create(**call)
    (use,) = [block for block in answer.content if block.type == "tool_use"]
    assert use.input.keys() == {"city"} and answer.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "12 degrees"}
    told = [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    again = client.messages.create(
        **call | {"messages": [*CALL["messages"], *told], "tool_choice": {"type": "none"}, "max_tokens": LIMIT}
    )
    assert again.stop_reason in {"end_turn", "max_tokens"}


def tool_stream() -> None:
    call = CALL | {"max_tokens": 64, "tools": [WEATHER], "tool_choice": {"type": "any"}}
    with client.messages.stream(**call) as stream:
        use, *_ = [block for block in stream.get_final_message().content if block.type == "tool_use"]
    assert use.input.keys() == {"city"}


if __name__ == "__main__":
    run(plain, streamed, counted, errors, tool, tool_stream)
