"""The programs are found where they are; what is wrong with ik_llama.cpp's sources is mended before they are built."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.common import llama_programs
from benchmarks.common.llama_programs import IK_LLAMA_CPP, LLAMA_CPP, PROGRAMS, SERVER, Project, obtain, version

IK = {
    "examples/batched-bench/batched-bench.cpp": """
    const int32_t n_kv_max = llama_n_ctx(ctx);
            common_batch_add(batch, 0, i, { 0 }, false);
                        common_batch_add(batch, 0, i, { j }, false);
                        common_batch_add(batch, 0, pp + i, { j }, true);
""",
    "ggml/src/iqk/fa/iqk_fa_templates.h": 2 * "for (; ik >=0 && Mc[ik] != 0; ik -= k_step);\n",
}


@pytest.mark.parametrize("project", [LLAMA_CPP, IK_LLAMA_CPP])
def test_programs_are_found(project: Project, tmp_path: Path) -> None:
    programs = tmp_path / "build" / "bin"
    programs.mkdir(parents=True)
    with pytest.raises(SystemExit, match=f"llama-server.*build them there, or leave {project.flag} out"):
        obtain(project, tmp_path, tmp_path)
    for name in PROGRAMS:
        (programs / name).touch()
    assert obtain(project, tmp_path, tmp_path) == obtain(project, programs, tmp_path) == programs


def test_programs_in_the_cache_are_not_built_again(tmp_path: Path) -> None:
    programs = tmp_path / "octavo" / f"ik_llama.cpp-{IK_LLAMA_CPP.version}" / "build" / "bin"
    programs.mkdir(parents=True)
    for name in PROGRAMS:
        (programs / name).touch()
    assert obtain(IK_LLAMA_CPP, None, tmp_path) == programs


def test_flags() -> None:
    assert (LLAMA_CPP.flag, IK_LLAMA_CPP.flag) == ("--llama-cpp", "--ik-llama-cpp")


def test_a_program_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="no program cmake; install it"):
        llama_programs._build(LLAMA_CPP, tmp_path, tmp_path)


def test_a_program_that_fails_is_one_sentence() -> None:
    with pytest.raises(SystemExit, match="it cannot be false: its own message is above"):
        llama_programs.run(["false"], "it cannot be false")


def sources(directory: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        (directory / name).parent.mkdir(parents=True)
        (directory / name).write_text(text)
    (directory / "common").mkdir()


def test_iks_streams_get_random_tokens_and_see_all_their_keys(tmp_path: Path) -> None:
    sources(tmp_path, IK)
    for _ in range(2):  # a build that was interrupted is mended again
        IK_LLAMA_CPP.mend(tmp_path)
        bench, attention = ((tmp_path / name).read_text() for name in IK)
        assert bench.count("std::rand() % n_vocab") == 2
        assert bench.count("n_vocab = llama_n_vocab(model), n_kv_max = llama_n_ctx(ctx);") == 1
        assert "common_batch_add(batch, 0, i, { 0 }, false)" in bench  # it only warms up
        assert attention.count("== 0; return seen; }(); ik -= k_step);") == 2
    assert "configure_file" in (tmp_path / "common" / "cmake" / "build-info-gen-cpp.cmake").read_text()


@pytest.mark.parametrize(("before", "after"), [("pp + i", "pp"), ("Mc[ik]", "Mc[0]")])
def test_other_sources_are_not_measured(before: str, after: str, tmp_path: Path) -> None:
    sources(tmp_path, {name: text.replace(before, after) for name, text in IK.items()})
    with pytest.raises(SystemExit, match="is not the file that was expected"):
        IK_LLAMA_CPP.mend(tmp_path)


@pytest.mark.parametrize(
    ("said", "stated"),
    [("version: 7123 (0c1e570)", "7123 (0c1e570)"), ("version: 0 (unknown)", "of ik-llama-cpp-python 0.1.5")],
)
def test_versions(said: str, stated: str, tmp_path: Path) -> None:
    server = tmp_path / SERVER
    server.write_text(f"#!/bin/sh\necho '{said}' >&2\n")
    server.chmod(0o755)
    subprocess.run([server], check=True, capture_output=True)
    assert version(IK_LLAMA_CPP, tmp_path) == stated
