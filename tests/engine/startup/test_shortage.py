"""The machine's refusals are told in a sentence, and what may be a mistake of ours is not."""

import errno
import os

import pytest

from octavo.engine.startup.shortage import shortage


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "Memory ran out: raise the limit (ulimit -v"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "Memory ran out (libtorch_cpu.so"),
        (OSError("libgomp.so.1: failed to map segment from shared object"), "Memory ran out"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Memory ran out ([Errno 12]"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nto allocate"), "you tried): raise"),
        (RuntimeError("can't start new thread"), "The system allows no more threads (can't start new thread): raise"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "no more threads"),
        (OSError(errno.EMFILE, "Too many open files", "/models/x"), "Too many open files: /models/x; raise the limit"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "Permission denied: /x; give this user the right"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), "/x; put it back"),
        (ImportError("No module named 'torch'"), "A library cannot be loaded (No module named 'torch'): install"),
    ],
)
def test_what_is_denied(error: Exception, words: str) -> None:
    said = shortage(error)
    assert said is not None and words in said
    assert said.endswith(".") and "\n" not in said


@pytest.mark.parametrize("error", [RuntimeError("a mistake"), ValueError(), OSError(errno.EIO, os.strerror(errno.EIO))])
def test_what_is_not(error: Exception) -> None:
    assert shortage(error) is None
