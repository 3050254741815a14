"""Takes memory from the system in a thread, while torch is imported or while the engine serves already.

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
POPULATE_READ, POPULATE_WRITE = 22, 23  # MADV_POPULATE_READ and _WRITE, which Python does not name


def huge_pages(size: int) -> mmap.mmap:
    """Returns zeros, in pages of 2 MiB if the system has them; a page takes memory only when it is first written."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # the system's kernel may lack them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def populate(address: int, size: int, way: int) -> bool:
    """Lets the system give pages now, which keep their contents; returns whether it has, as Linux does from 5.14 on.

    `way` is POPULATE_READ or POPULATE_WRITE. Other threads of Python run meanwhile, as they do not in calls of mmap.
    """
    if sys.platform != "linux":
        return False
    first = address - address % mmap.PAGESIZE
    return ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size + address - first), way) == 0


class Reserve:
    """A Reserve is zeros that a thread takes from the system, one after the other."""

    def __init__(self, size: int) -> None:
        """Starts the thread at once; `size` is in bytes, at least one."""
        self.size = size
        self._memory: mmap.mmap | None = huge_pages(size)
        self._can_share = populate(ctypes.addressof(ctypes.c_char.from_buffer(self._memory)), 1, POPULATE_WRITE)
        self._wanted = Event()
        self._thread = Thread(target=self._take, args=(self._memory,), name="reserve", daemon=True)
        self._thread.start()

    def hand_over(self, at_once: bool = False) -> mmap.mmap:
        """Returns all of the zeros, once. The reserve keeps nothing, so they are freed when nobody needs them.

        The thread stops, and what it has not taken is taken as it is used. With `at_once` it goes on to the end, while
        others use the zeros already; where the system cannot do that, this waits for the end.
        """
        if not at_once:
            self._wanted.set()
        if not at_once or not self._can_share:
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
            size = min(STEP, len(memory) - at)
            if not self._can_share:
                ctypes.memset(start + at, 0, size)
            elif not populate(start + at, size, POPULATE_WRITE):
                return  # Memory ran out: whoever uses the rest finds out.
