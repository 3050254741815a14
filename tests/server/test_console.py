"""The console shows the engine's states, on a terminal and elsewhere."""

from io import StringIO

from octavo.engine.api import Progress, Ready
from octavo.engine.client import Draining, EngineState, Failed, Loading
from octavo.server.config import ServerConfig
from octavo.server.console import Console, ProgressLine

READY = Ready(max_model_len=100, max_num_seqs=4, max_waiting=4, description=("a model", "a cache"))
URL = "http://127.0.0.1:8000"


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def shown(*states: EngineState, config: ServerConfig | None = None) -> str:
    stream = StringIO()
    console = Console(stream, URL, config or ServerConfig(("it's",)))
    for state in states:
        console(state)
    return stream.getvalue()


def test_ready_says_what_where_and_how_to_try_it() -> None:
    lines = shown(READY).splitlines()
    assert lines[:3] == ["a model", "a cache", f"it's is served on {URL}/v1; open {URL} in a browser, or try:"]
    assert f"curl -N {URL}/v1/chat/completions" in lines[4]
    assert "Authorization" not in lines[4]
    assert """"model": "it'"'"'s",""" in lines[5], "quoted for a shell"


def test_the_example_names_the_key_without_telling_it() -> None:
    text = shown(READY, config=ServerConfig(("m",), api_keys=("secret",)))
    assert "or try, with an API key in place of KEY:" in text
    assert "-H 'Authorization: Bearer KEY'" in text, "a variable might not be set"
    assert "secret" not in text


def test_a_death_is_told_once_and_so_is_the_recovery() -> None:
    again = Loading(error="the engine process was killed by SIGKILL")
    text = shown(READY, again, Loading(Progress("loading", 0, 2), again.error), again, READY, Draining())
    assert text.count("octavo: the engine process was killed by SIGKILL; starting it again.") == 1
    assert text.count("try:") == 1
    assert text.endswith("octavo: the engine serves again.\n")


def test_failure_is_the_last_word() -> None:
    assert shown(Failed("Give another directory.")) == "octavo: Give another directory.\n"


def test_without_a_terminal_progress_is_a_line_for_each_quarter() -> None:
    text = shown(*(Loading(Progress("loading", done, 1000)) for done in range(1001)))
    assert text.splitlines() == [f"loading: {share} %" for share in (0, 25, 50, 75, 100)]


def test_a_note_stands_behind_the_progress() -> None:
    for stream, expected in ((StringIO(), "training: 50 %, loss 2.1\n"), (Terminal(), " (loss 2.1)")):
        line = ProgressLine(stream)
        line.show("training", 5, 10, "loss 2.1")
        assert expected in stream.getvalue()
        line.close()


def test_on_a_terminal_progress_is_a_bar_that_goes_away() -> None:
    terminal = Terminal()
    line = ProgressLine(terminal)
    line.show("loading", 1, 4)
    line.show("loading", 2, 4)
    line.show("measuring", 0, 0)
    line.close()
    text = terminal.getvalue()
    assert "loading  25%" in text
    assert "loading  50%" in text
    assert "\n" not in text
    assert text.endswith("\r")
