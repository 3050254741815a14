"""Measures how fast threads read memory when they do nothing else: the limit for the speed of decoding."""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 2**30  # bytes: no cache holds it
PASSES = 5


class Bandwidth:
    """A Bandwidth measures the memory by reading one buffer again and again."""

    def __init__(self, library: ctypes.CDLL, buffer: int, threads: int) -> None:
        self._pass = library.bandwidth_read
        self._pass.restype = ctypes.c_double
        self._pass.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._buffer, self._threads = buffer, threads

    def best(self) -> float:
        """Returns the bytes per second of the best of several passes."""
        return max(self._pass(self._buffer, SIZE, self._threads) for _ in range(PASSES))


@contextmanager
def measured_bandwidth(threads: int) -> Iterator[Bandwidth]:
    """Compiles the code that reads, and holds its buffer until the context ends.

    Raises SystemExit if there is no C compiler, or no memory left for the buffer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        library = ctypes.CDLL(str(_compile(Path(scratch))))
        allocate = library.bandwidth_allocate
        allocate.restype, allocate.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
        buffer = allocate(SIZE)
        if not buffer:
            raise SystemExit("There is no memory left for the buffer that measures the bandwidth: free 1 GiB.")
        try:
            yield Bandwidth(library, buffer, threads)
        finally:
            library.bandwidth_free(ctypes.c_void_p(buffer), ctypes.c_size_t(SIZE))


def _compile(scratch: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SystemExit("Measuring the bandwidth needs a C compiler: install gcc or clang.")
    target = scratch / "bandwidth.so"
    source = Path(__file__).with_suffix(".c")
    command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-pthread", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{compiler} cannot compile {source.name}; it said:\n{done.stderr}")
    return target
