# /// script
# dependencies = ["langchain-openai"]
# ///
"""Checks LangChain's ChatOpenAI."""

from langchain_core.tools import tool as as_tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field
from report import API, KEY, LIMIT, MODEL, QUESTION, run

model = ChatOpenAI(base_url=API, api_key=KEY, model=MODEL, max_tokens=LIMIT)
patient = ChatOpenAI(base_url=API, api_key=KEY, model=MODEL, max_tokens=200)


class Book(BaseModel):
    title: str = Field(max_length=40)
    pages: int


@as_tool
def get_weather(city: str) -> str:
    """Returns the weather in a city."""
    return f"12 degrees in {city}"


def plain() -> None:
    answer = model.invoke(QUESTION)
    assert answer.content and answer.usage_metadata["output_tokens"] <= LIMIT


def streamed() -> None:
    chunks = list(model.stream(QUESTION, stream_usage=True))
    whole = sum(chunks[1:], chunks[0])
    assert whole.content and whole.usage_metadata["output_tokens"] <= LIMIT


def batch() -> None:
    assert len(model.batch([QUESTION, "And a quarto?"])) == 2


def tool() -> None:
    answer = patient.bind_tools([get_weather], tool_choice="get_weather").invoke("How warm is it in Oslo?")
    (call,) = answer.tool_calls
    assert call["name"] == "get_weather" and isinstance(call["args"]["city"], str)


def structured() -> None:
    for method in ("json_schema", "function_calling"):
        assert isinstance(patient.with_structured_output(Book, method=method).invoke("Name a book."), Book)


if __name__ == "__main__":
    run(plain, streamed, batch, tool, structured)
