"""Shows the engine on the terminal: a bar while it loads, a few lines when it serves, a sentence when it dies."""

import json
import shlex
from typing import Any, TextIO

from tqdm import tqdm

from octavo.engine.api import Ready
from octavo.engine.client import Draining, EngineState, Failed, Loading
from octavo.server.config import ServerConfig


class ProgressLine:
    """Shows the progress of long work, by a bar on a terminal and elsewhere by a line for each quarter of it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: tqdm[Any] | None = None
        self._shown = ("", -1)  # the work and the quarter of it that the last line told

    def show(self, what: str, done: int, total: int, note: str = "") -> None:
        """Shows how much of some work is done. A note, such as the speed, takes the place of the time that is left."""
        if self._stream.isatty():
            self._draw(what, done, total, note)
            return
        quarter = 4 * done // max(total, 1)
        if (what, quarter) != self._shown:
            self._shown = (what, quarter)
            told = f"{what}: {100 * done // max(total, 1)} %" + (f", {note}" if note else "")
            print(told, file=self._stream, flush=True)

    def close(self) -> None:
        """Removes the bar, so that the next work begins anew."""
        self._shown = ("", -1)
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _draw(self, what: str, done: int, total: int, note: str) -> None:
        if self._bar is None or self._bar.desc != what:
            self.close()
            form = "{desc} {percentage:3.0f}% |{bar}| {elapsed} " + ("({unit})" if note else "(about {remaining} left)")
            self._bar = tqdm(
                desc=what, total=total, file=self._stream, leave=False, dynamic_ncols=True, bar_format=form
            )
        self._bar.unit = note
        self._bar.n = done
        self._bar.refresh()


class Console:
    """A Console is called with each new state of the engine, and writes what it means to `stream`."""

    def __init__(self, stream: TextIO, url: str, config: ServerConfig) -> None:
        """`url` is the address to show, without a path."""
        self._stream = stream
        self._url = url
        self._config = config
        self._progress = ProgressLine(stream)
        self._error: str | None = None  # why the engine is being started again
        self._was_ready = False

    def __call__(self, state: EngineState) -> None:
        match state:
            case Loading(progress, error):
                if error is not None and error != self._error:
                    self._say(f"octavo: {error}; starting it again.")
                self._error = error
                if progress is not None:
                    self._progress.show(progress.what, progress.done, progress.total)
            case Ready():
                self._error = None
                self._say("octavo: the engine serves again." if self._was_ready else self._welcome(state))
                self._was_ready = True
            case Draining():
                self._progress.close()
            case Failed(error):
                self._say(f"octavo: {error}")

    def _say(self, text: str) -> None:
        self._progress.close()
        print(text, file=self._stream, flush=True)

    def _welcome(self, ready: Ready) -> str:
        name, url = self._config.served_model_name, self._url
        lines = [
            *ready.description,
            f"{name} is served on {url}/v1; open {url} in a browser, or try{self._which_key()}:",
            "",
            f"    {self._example()}",
            "",
        ]
        return "\n".join(lines)

    def _which_key(self) -> str:
        return ", with an API key in place of KEY" if self._config.api_keys else ""

    def _example(self) -> str:
        message = {"role": "user", "content": "What is an octavo?"}
        body = json.dumps({"model": self._config.served_model_name, "stream": True, "messages": [message]})
        key = "-H 'Authorization: Bearer KEY' " if self._config.api_keys else ""
        return (
            f"curl -N {self._url}/v1/chat/completions {key}-H 'Content-Type: application/json' \\\n"
            f"        -d {shlex.quote(body)}"
        )
