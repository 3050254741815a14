"""Both projects' benchmarks are asked in their own way, and their figures say what the other peers' steps say."""

from pathlib import Path

import pytest

from benchmarks.common.llama_programs import BENCH, IK_LLAMA_CPP, LLAMA_CPP, QUANTIZE, Project
from benchmarks.common.loads import Load
from benchmarks.peers.llama_cpp import LlamaCpp, step_ends, table_row

TABLE = """
main: n_kv_max = 2560, n_batch = 2048, flash_attn = 1, n_threads = 2

|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|    16 |      8 |    1 |     24 |    0.102 |   156.86 |    0.250 |    32.00 |    0.352 |    68.18 |
|    16 |     16 |    4 |    128 |    2.000 |    32.00 |    8.000 |     8.00 |   10.000 |    12.80 |

llama_print_timings: 2 runs
"""
DECODE = Load("", streams=4, prompt_tokens=16, max_tokens=17)


def test_the_last_row_of_the_table_is_taken() -> None:
    found = table_row(TABLE)
    assert found is not None
    assert (found["B"], found["TG"], found["T_PP s"], found["T_TG s"]) == (4, 16, 2.0, 8.0)
    assert table_row("|    PP |     TG |    B |") is None


def test_steps_give_back_its_own_rates() -> None:
    figures = {"T_PP s": 2.0, "T_TG s": 8.0, "TG": 16.0}
    assert DECODE.rate(step_ends(figures, DECODE)) == pytest.approx(4 * 16 / 8.0)
    prefill = Load("", streams=1, prompt_tokens=512, max_tokens=1)
    assert prefill.rate(step_ends(figures, prefill)) == pytest.approx(512 / 2.0)


def program(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("project", "stream", "repacks"), [(LLAMA_CPP, 1, False), (IK_LLAMA_CPP, 2, True)])
def test_its_benchmark_is_asked(project: Project, stream: int, repacks: bool, tmp_path: Path) -> None:
    program(tmp_path, BENCH, f'echo "$@ $GOMP_SPINCOUNT" > {tmp_path}/asked\ncat >&{stream} <<END{TABLE}END')
    one = LlamaCpp(project, tmp_path)
    ends = one.measure(tmp_path / "model.gguf", DECODE, 2, {"GOMP_SPINCOUNT": "77"})
    assert DECODE.rate(ends) == pytest.approx(8.0)
    asked = (tmp_path / "asked").read_text().split()
    assert ("--run-time-repack" in asked) == repacks == ("--run-time-repack" in one.server)
    assert asked[-11:] == ["-t", "2", "-c", "132", "-npp", "16", "-ntg", "16", "-npl", "4", "77"]


def test_a_benchmark_that_fails_says_why(tmp_path: Path) -> None:
    program(tmp_path, BENCH, "echo no such model >&2; exit 1")
    with pytest.raises(SystemExit, match="(?s)ik_llama.cpp's llama-batched-bench failed.*no such model"):
        LlamaCpp(IK_LLAMA_CPP, tmp_path).measure(tmp_path / "model.gguf", DECODE, 2, {})


def test_each_project_makes_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "model-F16.gguf"
    whole.write_text("whole ")
    monkeypatch.setattr("benchmarks.peers.llama_cpp._converted", lambda model: whole)
    program(tmp_path, QUANTIZE, '(cat "$1"; echo "$3") > "$2"')
    files = [LlamaCpp(project, tmp_path).file_of(tmp_path, "Q4_0") for project in (LLAMA_CPP, IK_LLAMA_CPP)]
    assert [file.read_text() for file in files] == ["whole Q4_0\n"] * 2
    assert files[0] != files[1]
    assert LlamaCpp(LLAMA_CPP, tmp_path).file_of(tmp_path, "F16") == whole
    program(tmp_path, QUANTIZE, "exit 1")
    assert LlamaCpp(LLAMA_CPP, tmp_path).file_of(tmp_path, "Q4_0") == files[0]  # it is there
