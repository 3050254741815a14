"""Each contender is started with what it is named after, and answers in the same form."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.common.checkpoint import SHAPES, build
from benchmarks.common.llama_programs import BENCH, QUANTIZE
from benchmarks.common.loads import Load
from benchmarks.peers.__main__ import SECTIONS, _names_in, _results
from benchmarks.peers.contenders import (
    CONTENDERS,
    HIDE,
    OCTAVO,
    PROJECTS,
    TRIAL,
    Contender,
    LlamaBench,
    Setting,
    start_engine,
    start_server,
)
from benchmarks.peers.llama_cpp import LlamaCpp
from tests.benchmarks.common.support import SMALL_SHAPE
from tests.tiny import write_tiny_checkpoint

ROW = "echo '| 16 | 16 | 1 | 33 | 1.0 | 16.0 | 2.0 | 8.0 | 3.0 | 11.0 |' >&2"
PLAIN = Contender("Octavo fp32", OCTAVO, ("--device", "cpu", "--dtype", "float32"), 4.0, 4.0)


def setting(directory: Path) -> Setting:
    return Setting(write_tiny_checkpoint(directory / "model"), 1, {}, directory)


def test_the_engine_answers(tmp_path: Path) -> None:
    load = Load("", streams=2, prompt_tokens=4, max_tokens=3)
    hidden = replace(PLAIN, form=(*PLAIN.form, HIDE))
    with start_engine(hidden, setting(tmp_path)) as one:
        ends = one.ask(load)
        assert one.start is not None
        assert 0 < one.start.anonymous < one.start.resident
    assert [tokens for _, tokens in ends] == [2, 2, 2]
    assert load.rate(ends) > 0


def test_every_server_has_the_same_cache(tmp_path: Path) -> None:
    flags = setting(tmp_path).serve_flags(CONTENDERS["octavo-int8"])
    assert flags[:2] == ("--quantization", "int8")
    keys_and_values, layers, heads, head_dim = 2, 2, 2, 8
    size = 4 * keys_and_values * layers * heads * head_dim * 8192
    assert flags[flags.index("--kv-cache-memory") + 1] == str(size)


def test_only_servers_serve() -> None:
    serving = [name for name, contender in CONTENDERS.items() if contender.serves]
    llamas = [name for name in CONTENDERS if name.startswith(("llama-", "ik-"))]
    assert serving == ["octavo-fp16", "octavo-int8", "octavo-int4", *llamas]
    assert llamas == ["llama-f16", *(f"{who}-{kind}" for who in ("llama", "ik") for kind in ("q8_0", "q4_0", "q4_k_m"))]


def test_a_peer_answers_from_its_own_file(tmp_path: Path) -> None:
    """The programs are scripts: one copies the model, and the other writes a table."""
    for name, script in {QUANTIZE: 'cp "$1" "$2"', BENCH: ROW}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    build(tmp_path / "model", SHAPES["sparse"] | SMALL_SHAPE, 0, lambda done, total: None)
    for name in ("llama-q4_0", "ik-q4_0"):
        contender = CONTENDERS[name]
        llama = LlamaCpp(PROJECTS[contender.program], tmp_path)
        with start_engine(contender, Setting(tmp_path / "model", 1, {contender.program: llama}, tmp_path)) as one:
            assert isinstance(one, LlamaBench)
            assert (tmp_path / "model" / one.file.name).is_file() and contender.program in one.file.name
            assert TRIAL.rate(one.ask(TRIAL)) == 8.0


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    wrong = Contender("wrong", OCTAVO, ("--dtype", "float33"), 4.0, 4.0)
    with pytest.raises(SystemExit, match="did not start"), start_server(wrong, setting(tmp_path)):
        pytest.fail("it cannot be ready")


def test_results_of_some_sections_have_a_file_of_their_own() -> None:
    assert _results(["http"]).name.endswith("-peers-http-cpu.json")
    assert _results(list(SECTIONS)).name.endswith("-peers-cpu.json")


def test_names_are_checked() -> None:
    assert _names_in(SECTIONS)("http,engine") == ["http", "engine"]
    with pytest.raises(Exception, match="speed is none of engine, experts, http"):
        _names_in(SECTIONS)("http,speed")
