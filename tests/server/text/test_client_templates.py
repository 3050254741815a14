"""Callers take turns at the processes for their templates, and what they give up ends."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from octavo.server.http.errors import TooManyRequests
from octavo.server.text import client_templates
from octavo.server.text.client_templates import MAX_WAITING, PROCESSES, ClientTemplates
from octavo.server.text.template_process import ClientTemplate, TemplateProcess
from tests.server.text.test_template_process import ENDLESS


class Work:
    """Waits in its thread until it is told to end."""

    def __init__(self) -> None:
        self.begun, self.end = threading.Event(), threading.Event()

    def __call__(self, process: TemplateProcess) -> TemplateProcess:
        self.begun.set()
        assert self.end.wait(60)
        return process


async def begun(work: Work) -> None:
    await asyncio.to_thread(work.begun.wait, 60)


def scenario(test: Callable[[ClientTemplates], Any]) -> None:
    async def run() -> None:
        await test(ClientTemplates({}))

    asyncio.run(run())


def test_no_caller_has_two_processes() -> None:
    async def test(templates: ClientTemplates) -> None:
        first, second, other = Work(), Work(), Work()
        tasks = [
            asyncio.create_task(templates.run(who, work))
            for who, work in zip("aab", (first, second, other), strict=True)
        ]
        await begun(first)
        await begun(other)
        assert not second.begun.is_set()
        other.end.set()
        await tasks[2]
        assert not second.begun.is_set(), "its caller is still served"
        first.end.set()
        await begun(second)
        second.end.set()
        processes = await asyncio.gather(*tasks)
        assert processes[0] is not processes[2] and len(templates._idle) == 2

    scenario(test)


def test_more_callers_than_processes() -> None:
    async def test(templates: ClientTemplates) -> None:
        works = [Work() for _ in range(PROCESSES + 1)]
        tasks = [asyncio.create_task(templates.run(str(number), work)) for number, work in enumerate(works)]
        for work in works[:-1]:
            await begun(work)
        assert not works[-1].begun.is_set()
        for work in works:
            work.end.set()
        await asyncio.gather(*tasks)
        assert len(templates._idle) == PROCESSES and not templates._served

    scenario(test)


def test_the_queue_is_bounded_and_who_leaves_it_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(templates: ClientTemplates) -> None:
        first = Work()
        running = asyncio.create_task(templates.run("a", first))
        await begun(first)
        waiting = [asyncio.create_task(templates.run("a", Work())) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests, match="waiting"):
            await templates.run("a", Work())
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        monkeypatch.setattr(client_templates, "PATIENCE", 0)
        with pytest.raises(TooManyRequests, match="took too long"):
            await templates.run("a", Work())
        last = asyncio.create_task(templates.run("b", first))
        first.end.set()
        await asyncio.gather(running, last)
        assert not templates._served and not templates._waiting

    scenario(test)


def test_a_turn_that_comes_when_it_is_given_up_goes_to_the_next() -> None:
    async def test(templates: ClientTemplates) -> None:
        first, third = Work(), Work()
        running = asyncio.create_task(templates.run("a", first))
        await begun(first)
        second, next = (asyncio.create_task(templates.run("a", work)) for work in (Work(), third))
        await asyncio.sleep(0)
        first.end.set()
        third.end.set()
        await running
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await next
        assert not templates._served

    scenario(test)


def test_work_for_a_client_that_has_left_ends() -> None:
    async def test(templates: ClientTemplates) -> None:
        begun, ended = threading.Event(), threading.Event()

        def work(process: TemplateProcess) -> None:
            ClientTemplate(process, "fine")
            begun.set()
            try:
                ClientTemplate(process, ENDLESS)
            finally:
                ended.set()

        task = asyncio.create_task(templates.run("a", work))
        assert await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await asyncio.to_thread(ended.wait, 60)
        assert not templates._idle and not templates._served

    scenario(test)


def test_failures_are_passed_on_and_the_process_is_kept() -> None:
    async def test(templates: ClientTemplates) -> None:
        def work(process: TemplateProcess) -> None:
            raise ValueError

        with pytest.raises(ValueError):
            await templates.run("a", work)
        assert len(templates._idle) == 1

    scenario(test)
