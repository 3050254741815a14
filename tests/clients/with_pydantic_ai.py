# /// script
# dependencies = ["pydantic-ai-slim[openai]"]
# ///
"""Checks Pydantic AI's agents."""

import asyncio

from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelSettings, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from report import API, KEY, LIMIT, MODEL, QUESTION, run

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=API, api_key=KEY))
short = ModelSettings(max_tokens=LIMIT)
patient = ModelSettings(max_tokens=200)


class Book(BaseModel):
    title: str = Field(max_length=40)
    pages: int


def plain() -> None:
    answer = Agent(model, model_settings=short).run_sync(QUESTION)
    assert answer.output and answer.usage.output_tokens <= LIMIT


def streamed() -> None:
    async def told() -> str:
        async with Agent(model, model_settings=short).run_stream(QUESTION) as answer:
            return "".join([part async for part in answer.stream_text(delta=True)])

    assert asyncio.run(told())


def tool() -> None:
    agent = Agent(model, model_settings=patient, output_type=ToolOutput(Book), retries=0)
    assert isinstance(agent.run_sync("Name a book.").output, Book)


def structured() -> None:
    agent = Agent(model, model_settings=patient, output_type=NativeOutput(Book), retries=0)
    assert isinstance(agent.run_sync("Name a book.").output, Book)


if __name__ == "__main__":
    run(plain, streamed, tool, structured)
