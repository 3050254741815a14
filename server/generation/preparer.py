"""The preparer runs what turns a body into prompts: off the event loop, small bodies apart from larger ones."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from octavo.server.generation.helper import Helper
from octavo.server.generation.intake import SMALL
from octavo.server.generation.texts import Elsewhere, Texts
from octavo.server.text.client_templates import ClientTemplates
from octavo.server.text.template_process import TemplateProcess

QUICK = 16 * 1024  # bytes; a smaller body is read within milliseconds

T = TypeVar("T")
Prepare = Callable[..., T]  # a function of a module, of Texts, a body and what else it is given


class Preparer:
    """A Preparer has a lane for each size of bodies, so that none waits behind a larger one.

    Parsing and rendering hold the GIL, and stop every stream meanwhile. A large body is read by a process of its own.
    """

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._quick = ThreadPoolExecutor(2, "small bodies")
        self._steady = ThreadPoolExecutor(1, "larger bodies")
        directory = texts.tokenizer.directory
        self._client_templates = ClientTemplates(texts.tokenizer.special_tokens)
        self._helper = None if directory is None else Helper(directory, texts.config)

    async def run(self, caller: str, prepare: Prepare[T], body: bytes, *arguments: Any) -> T:
        """Returns prepare(texts, body, *arguments), or raises what it raises. Cancelling it ends the work.

        A body that brings a template of its own is read where its caller's other templates wait, and nobody else.
        """
        if len(body) > SMALL and self._helper is not None:
            result: T = await self._helper.run(prepare, body, arguments)
            return result
        lane = self._quick if len(body) <= QUICK else self._steady
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(lane, lambda: prepare(self._texts, body, *arguments))
        except Elsewhere:
            pass

        def work(process: TemplateProcess) -> T:
            return prepare(replace(self._texts, template_process=process), body, *arguments)

        return await self._client_templates.run(caller, work)
