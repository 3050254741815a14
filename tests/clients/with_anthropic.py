# /// script
# dependencies = ["anthropic"]
# ///
"""Checks Anthropic's own package over /v1/messages, with strict validation."""

from anthropic import Anthropic, BadRequestError, ContentTooLargeError, NotFoundError
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


def models() -> None:
    page = client.models.list()
    assert [(model.id, model.display_name, model.type) for model in page] == [(MODEL, MODEL, "model")]
    assert client.models.retrieve(MODEL).created_at == page.data[0].created_at and page.has_more is False


def stopped() -> None:
    endings = [f"\nHuman {number}:" for number in range(20)] + ["e"]
    answer = client.messages.create(**CALL, stop_sequences=endings)
    assert (answer.stop_reason, answer.stop_sequence) in {
        ("stop_sequence", "e"),
        ("max_tokens", None),
        ("end_turn", None),
    }


def agent() -> None:
    """Claude Code's fields: a limit beyond the context, cached blocks, thinking and an effort."""
    cached = {"cache_control": {"type": "ephemeral"}}
    with client.messages.stream(
        model=MODEL,
        max_tokens=32_000,
        system=[{"type": "text", "text": "Be brief.", **cached}],
        messages=[{"role": "user", "content": [{"type": "text", "text": QUESTION, **cached}]}],
        stop_sequences=[".", "\n"],  # ends the answer soon
        thinking={"type": "enabled", "budget_tokens": 31_999},
        metadata={"user_id": "someone"},
        extra_body={"temperature": 1, "output_config": {"effort": "high"}, "context_management": {"edits": []}},
    ) as stream:
        answer = stream.get_final_message()
    assert stream.request_id
    assert answer.stop_reason in {"stop_sequence", "end_turn", "model_context_window_exceeded"}


def errors() -> None:
    too_hot = {"extra_body": {"temperature": 1.5}}
    for expected, changes in (
        (NotFoundError, {"model": "another"}),
        (BadRequestError, {"max_tokens": -1}),
        (BadRequestError, too_hot),
        (ContentTooLargeError, {"messages": [{"role": "user", "content": "x" * 9_000_000}]}),
    ):
        try:
            client.messages.create(**CALL | changes)
        except expected as error:
            assert error.body["type"] == "error" and error.body["request_id"] == error.request_id
            assert (error.body["error"]["type"] == "request_too_large") == (error.status_code == 413)
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


def notes() -> None:
    """Claude Code sends a system message after each result."""
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "It rains."}
    step = [
        {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, use]},
        {"role": "user", "content": [result]},
        {"role": "system", "content": "Be brief."},
    ]
    history = [*CALL["messages"], *step, *step]
    assert client.messages.create(**CALL | {"messages": history, "tools": [WEATHER], "max_tokens": 1}).content


def cut_tool() -> None:
    call = CALL | {"max_tokens": 12, "tools": [WEATHER], "tool_choice": {"type": "any"}}
    with client.messages.stream(**call) as stream:
        streamed = stream.get_final_message()
    whole = client.messages.create(**call)
    for message in (streamed, whole):
        assert message.stop_reason in {"max_tokens", "tool_use"}
        assert all(isinstance(block.input, dict) for block in message.content if block.type == "tool_use")


if __name__ == "__main__":
    run(models, plain, streamed, counted, stopped, agent, errors, tool, tool_stream, notes, cut_tool)
