# /// script
# dependencies = ["instructor"]
# ///
"""Checks Instructor: it gets answers as pydantic objects, in each way that it has."""

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field
from report import API, KEY, MODEL, run

MESSAGES = [{"role": "user", "content": "Ada is 36 years old."}]
CALL = {"model": MODEL, "messages": MESSAGES, "max_tokens": 400, "max_retries": 0}


class Person(BaseModel, extra="forbid"):  # otherwise a tiny model goes on with fields of its own
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


def client(mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(OpenAI(base_url=API, api_key=KEY), mode=mode)


def tool() -> None:
    assert isinstance(client(instructor.Mode.TOOLS).create(**CALL, response_model=Person), Person)


def structured() -> None:
    assert isinstance(client(instructor.Mode.JSON_SCHEMA).create(**CALL, response_model=Person), Person)


def streamed() -> None:
    people = list(client(instructor.Mode.JSON_SCHEMA).create_partial(**CALL, response_model=Person))
    assert isinstance(people[-1].age, int)


def plain() -> None:
    answer = client(instructor.Mode.TOOLS).create(model=MODEL, messages=MESSAGES, max_tokens=16, response_model=None)
    assert answer.choices[0].message.content


if __name__ == "__main__":
    run(plain, tool, structured, streamed)
