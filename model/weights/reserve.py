"""Takes memory from the system while torch is imported, which keeps only one processor busy.

The system works on each page, the more so in a virtual machine, which may have to ask its host for each: a GiB can take
three seconds of a processor. Torch is not imported here.
"""

import contextlib
import ctypes
import mmap
import os
import sys
from threading import Event, Thread, get_native_id

PAGE = 2 << 20  # bytes
STEP = 4 * PAGE  # bytes taken at once; `hand_over` may have to wait for them, for some hundredths of a second
NICENESS = 10


def huge_pages(size: int) -> mmap.mmap:
    """Returns zeros, in pages of 2 MiB if the system has them; a page takes memory only when it is first written."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # the system's kernel may lack them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class Reserve:
    """A Reserve is zeros that a thread takes from the system, one after the other, until they are handed over."""

    def __init__(self, size: int) -> None:
        """Starts the thread at once; `size` is in bytes, at least one."""
        self._memory: mmap.mmap | None = huge_pages(size)
        self._wanted = Event()
        self._thread = Thread(target=self._take, args=(self._memory,), name="reserve", daemon=True)
        self._thread.start()

    def hand_over(self) -> mmap.mmap:
        """Returns all of the zeros, once. The reserve keeps nothing, so they are freed when nobody needs them."""
        self._wanted.set()
        self._thread.join()
        memory, self._memory = self._memory, None
        assert memory is not None, "the reserve was handed over before"
        return memory

    def _take(self, memory: mmap.mmap) -> None:
        if sys.platform == "linux":  # a thread has a priority of its own here, and the import goes first
            os.setpriority(os.PRIO_PROCESS, get_native_id(), NICENESS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for at in range(0, len(memory), STEP):
            if self._wanted.is_set():
                return
            ctypes.memset(start + at, 0, min(STEP, len(memory) - at))  # ctypes releases the interpreter's lock
