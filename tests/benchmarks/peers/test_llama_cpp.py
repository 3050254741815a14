"""llama.cpp's programs are found where they are, and its figures say what the other peers' steps say."""

from pathlib import Path

import pytest

from benchmarks.common.loads import Load
from benchmarks.peers import llama_cpp

FIGURES = {"t_pp": 2.0, "t_tg": 8.0, "tg": 16}


def test_programs_are_found(tmp_path: Path) -> None:
    programs = tmp_path / "build" / "bin"
    programs.mkdir(parents=True)
    with pytest.raises(SystemExit, match="llama-server.*build them"):
        llama_cpp.obtain(tmp_path, tmp_path)
    for name in llama_cpp.PROGRAMS:
        (programs / name).touch()
    assert llama_cpp.obtain(tmp_path, tmp_path) == llama_cpp.obtain(programs, tmp_path) == programs


def test_steps_give_back_its_own_rates() -> None:
    decode = Load("", streams=4, prompt_tokens=16, max_tokens=17)
    assert decode.rate(llama_cpp.step_ends(FIGURES, decode)) == pytest.approx(4 * 16 / 8.0)
    prefill = Load("", streams=1, prompt_tokens=512, max_tokens=1)
    assert prefill.rate(llama_cpp.step_ends(FIGURES, prefill)) == pytest.approx(512 / 2.0)


def test_a_program_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="no program cmake; install it"):
        llama_cpp._build(tmp_path, tmp_path)
