"""The process that tries grammars: its verdicts, and what becomes of grammars that would never end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine import checker
from engine.api import Grammar
from engine.checker import MAX_QUEUE, MAX_TEXT, TOO_LARGE, TOO_SLOW, Closed, Crowded, GrammarChecker
from tests.server.vocab import EOS, byte_level

WORD = Grammar("regex", "[a-z]+")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may be busy."""
    monkeypatch.setattr(checker, "CHECK_SECONDS", 60)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    byte_level().backend.save(str(path))
    return path


@asynccontextmanager
async def checking(tokenizer: Path) -> AsyncIterator[GrammarChecker]:
    made = GrammarChecker(tokenizer)
    try:
        yield made
    finally:
        made.close()


def endless() -> Grammar:
    """Each schema merges the one before twice: 2**39 merges in four kilobytes."""
    schemas: dict[str, Any] = {"d0": {"type": "object"}}
    for n in range(1, 40):
        before = {"$ref": f"#/$defs/d{n - 1}"}
        both = {name: {"allOf": [before, {"minProperties": n + extra}]} for extra, name in enumerate("ab")}
        schemas[f"d{n}"] = {"type": "object", "properties": both}
    return Grammar("json", json.dumps({"$defs": schemas, "$ref": "#/$defs/d39"}))


def test_verdicts_and_what_survives_a_grammar_that_never_ends(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with checking(tokenizer) as made:
            assert await made.check(WORD, (EOS,)) is None
            assert 'not supported: "not"' in str(await made.check(Grammar("json", '{"not": {}}'), (EOS,)))
            with monkeypatch.context() as impatient:
                impatient.setattr(checker, "CHECK_SECONDS", 0.5)
                assert await made.check(endless(), (EOS,)) == TOO_SLOW
            assert await made.check(Grammar("regex", "[0-9]+"), (EOS,)) is None

    asyncio.run(scenario())


def test_a_process_that_dies_is_replaced(tokenizer: Path) -> None:
    async def scenario() -> None:
        async with checking(tokenizer) as made:
            assert await made.check(WORD, (EOS,)) is None
            assert made._child is not None
            made._child.kill()
            assert await made.check(Grammar("regex", "a"), (EOS,)) == TOO_LARGE
            assert await made.check(Grammar("regex", "a"), (EOS,)) is None
            assert await made.check(WORD, (EOS,)) is None

    asyncio.run(scenario())


def test_closing_is_no_verdict_on_what_is_tried_or_waits(tokenizer: Path) -> None:
    async def scenario() -> None:
        async with checking(tokenizer) as made:
            assert await made.check(WORD, (EOS,)) is None
            waiting = [
                asyncio.create_task(made.check(grammar, (EOS,))) for grammar in (endless(), Grammar("regex", "[0-9]+"))
            ]
            await asyncio.sleep(0)  # now the one is tried, and the other waits
        for verdict in waiting:
            with pytest.raises(Closed):
                await verdict
        with pytest.raises(Closed):
            await made.check(Grammar("regex", "a"), (EOS,))
        assert await made.check(WORD, (EOS,)) is None, "what is known needs no process"

    asyncio.run(scenario())


def test_verdicts_are_remembered_and_bounds_are_kept_without_a_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with checking(tmp_path / "tokenizer.json") as made:
            assert "131072 are allowed" in str(await made.check(Grammar("regex", "a" * (MAX_TEXT + 1)), (EOS,)))
            made._verdicts[WORD] = None
            made._queued = MAX_QUEUE
            assert await made.check(WORD, (EOS,)) is None
            with pytest.raises(Crowded):
                await made.check(Grammar("regex", "a"), (EOS,))
            assert made._child is None

    asyncio.run(scenario())


def test_a_checkpoint_without_a_usable_tokenizer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with checking(tmp_path / "tokenizer.json") as made:
            assert "does not allow for grammars" in str(await made.check(WORD, (EOS,)))

    asyncio.run(scenario())
