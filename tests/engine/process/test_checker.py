"""The checker gives its verdict on every grammar, also on those that would never end."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from octavo.engine.api import Grammar
from octavo.engine.process import checker
from octavo.engine.process.checker import (
    MAX_QUEUE,
    MAX_TEXT,
    TOO_LARGE,
    TOO_SLOW,
    Closed,
    Crowded,
    GrammarChecker,
    _Place,
)
from tests.server.vocab import BYTES, EOS, byte_level

WORD = Grammar("regex", "[a-z]+")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each grammar a minute, since the machine may be busy."""
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
    """Returns a grammar of four kilobytes with 2**39 merges: each schema merges the one before twice."""
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
            (process,) = (place.process for place in made._places if place.process is not None)
            process.kill()  # while it is idle, which says nothing of the next grammar
            process._process.wait()
            assert await made.check(Grammar("regex", "a"), (EOS,)) is None
            pid = _pid(made)
            os.kill(pid, signal.SIGSTOP)
            trial = asyncio.create_task(made.check(Grammar("regex", "b"), (EOS,)))
            await asyncio.sleep(0.1)
            os.kill(pid, signal.SIGKILL)
            assert await trial in (TOO_LARGE, None)  # None: on a busy machine it was not asked yet.
            assert await made.check(Grammar("regex", "b"), (EOS,)) is None
            assert await made.check(WORD, (EOS,)) is None

    asyncio.run(scenario())


def test_a_process_that_stands_still_is_not_waited_for(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with checking(tokenizer) as made:
            monkeypatch.setattr(checker, "CHECK_SECONDS", 1.0)
            while await made.check(WORD, (EOS,)) == TOO_SLOW:
                pass  # The machine is busy.
            os.kill(_pid(made), signal.SIGSTOP)
            large = Grammar("regex", "\N{GRINNING FACE}" * MAX_TEXT)  # The pipe has no room for so much.
            assert await made.check(large, (EOS,)) == TOO_SLOW

    asyncio.run(scenario())


def _pid(made: GrammarChecker) -> int:
    (pid,) = (place.process._process.pid for place in made._places if place.process is not None)
    assert pid is not None
    return pid


def test_closing_is_no_verdict_on_what_is_tried_or_waits(tokenizer: Path) -> None:
    async def scenario() -> None:
        async with checking(tokenizer) as made:
            assert await made.check(WORD, (EOS,)) is None
            waiting = [
                asyncio.create_task(made.check(grammar, (EOS,))) for grammar in (endless(), Grammar("regex", "[0-9]+"))
            ]
            await asyncio.sleep(0)  # Now the one is tried, and the other waits.
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
            assert await made.check(WORD, (EOS,)) is None
            assert all(place.process is None for place in made._places)

    asyncio.run(scenario())


def test_grammars_queue_and_those_who_ask_for_the_same_wait_together(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Grammar] = []
    everybody_came_or_left = threading.Event()
    ask = GrammarChecker._ask

    def counted(
        self: GrammarChecker, place: _Place, grammar: Grammar, eos_token_ids: tuple[int, ...]
    ) -> tuple[str | None, bool]:
        assert everybody_came_or_left.wait(60)
        tried.append(grammar)
        return ask(self, place, grammar, eos_token_ids)

    monkeypatch.setattr(GrammarChecker, "_ask", counted)
    others = [Grammar("regex", "a" * n) for n in range(1, MAX_QUEUE)]

    async def scenario() -> None:
        async with checking(tokenizer) as made:
            asked = [asyncio.create_task(made.check(grammar, (EOS,))) for grammar in [WORD] * (2 * MAX_QUEUE) + others]
            await asyncio.sleep(0)
            with pytest.raises(Crowded):
                await made.check(Grammar("regex", "b"), (EOS,))
            asked[0].cancel()  # One of many leaves.
            asked[-1].cancel()  # The only one leaves.
            await asyncio.sleep(0)
            everybody_came_or_left.set()
            verdicts = await asyncio.gather(*asked, return_exceptions=True)
            assert verdicts[1:-1] == [None] * (len(asked) - 2)
            assert await made.check(Grammar("regex", "b"), (EOS,)) is None

    asyncio.run(scenario())
    assert tried == [WORD, *others[:-1], Grammar("regex", "b")]


def test_slow_grammars_of_one_caller_do_not_delay_anothers(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    ask = GrammarChecker._ask

    def slow(
        self: GrammarChecker, place: _Place, grammar: Grammar, eos_token_ids: tuple[int, ...]
    ) -> tuple[str | None, bool]:
        assert not grammar.text.startswith("slow") or may_end.wait(60)
        return ask(self, place, grammar, eos_token_ids)

    monkeypatch.setattr(GrammarChecker, "_ask", slow)

    async def scenario() -> None:
        async with checking(tokenizer) as made:
            slow = [asyncio.create_task(made.check(Grammar("regex", f"slow{n}"), (EOS,), "one")) for n in range(32)]
            await asyncio.sleep(0)
            with pytest.raises(Crowded):
                await made.check(WORD, (EOS,), "one")
            shared = asyncio.create_task(made.check(Grammar("regex", "shared"), (EOS,), "other"))
            assert await made.check(WORD, (EOS,), "other") is None
            assert await shared is None
            assert await made.check(Grammar("regex", "[0-9]"), (EOS,), "third") is None
            assert not any(task.done() for task in slow)
            may_end.set()
            assert await asyncio.gather(*slow) == [None] * 32

    asyncio.run(scenario())


def test_who_asks_for_what_another_waits_for_has_a_turn_of_its_own(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    ask = GrammarChecker._ask

    def slow(
        self: GrammarChecker, place: _Place, grammar: Grammar, eos_token_ids: tuple[int, ...]
    ) -> tuple[str | None, bool]:
        assert grammar == WORD or may_end.wait(60)
        return ask(self, place, grammar, eos_token_ids)

    monkeypatch.setattr(GrammarChecker, "_ask", slow)

    async def scenario() -> None:
        async with checking(tokenizer) as made:
            slow = asyncio.create_task(made.check(Grammar("regex", "a"), (EOS,), "one"))
            await asyncio.sleep(0)
            behind = asyncio.create_task(made.check(WORD, (EOS,), "one"))
            await asyncio.sleep(0)
            assert await made.check(WORD, (EOS,), "other") is None
            assert await behind is None
            may_end.set()
            assert await slow is None

    asyncio.run(scenario())


def test_a_grammar_that_only_unsampled_tokens_fulfil(tokenizer: Path) -> None:
    async def scenario() -> None:
        made = GrammarChecker(tokenizer, sampled_vocab=BYTES + ord("a"))
        try:
            assert "No token of the model continues" in str(await made.check(WORD, (EOS,)))
            assert await made.check(Grammar("regex", "[0-9]+"), (EOS,)) is None
        finally:
            made.close()

    asyncio.run(scenario())


def test_a_checkpoint_without_a_usable_tokenizer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with checking(tmp_path / "tokenizer.json") as made:
            assert "does not allow for grammars" in str(await made.check(WORD, (EOS,)))

    asyncio.run(scenario())
