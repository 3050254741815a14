"""The bandwidth is measured with any number of threads, and a machine that cannot measure it is told why."""

import shutil

import pytest

from benchmarks.common import bandwidth

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
def test_it_reads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "SIZE", 2**22)
    with bandwidth.measured_bandwidth(threads) as measured:
        assert measured.best() > 1e6


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="install gcc or clang"), bandwidth.measured_bandwidth(1):
        pytest.fail("nothing can be compiled")
