"""Says what the machine denies a process that starts: memory, threads, files, room on a disk."""

import errno

MEMORY = "raise the limit (ulimit -v and -d, or the container's), free some memory, or choose a smaller --quantization"
THREADS = "raise the limit (ulimit -u, or the container's pids limit), or lower --threads"
FILES = "raise the limit (ulimit -n)"

_ADVICE = {
    errno.ENOMEM: MEMORY,
    errno.EAGAIN: THREADS,
    errno.EMFILE: FILES,
    errno.ENFILE: FILES,
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room on the disk",
    errno.EROFS: "give a place that can be written",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.ENOENT: "put it back",
    errno.ENOTDIR: "put it back",
    errno.ELOOP: "put it back",
    errno.ENAMETOOLONG: "give a shorter name",
}
# Libraries say these in errors of no particular type, when a request for memory or for a thread is denied.
_OF_MEMORY = ("failed to map segment", "cannot allocate memory", "can't allocate memory", "not enough memory")
_OF_THREADS = ("can't start new thread", "thread creation failed", "resource temporarily unavailable")


def shortage(error: BaseException) -> str | None:
    """Returns a sentence about an error that starting again would not change; None where it might be another kind."""
    words = str(error).lower()
    match error:
        case MemoryError():
            return f"Memory ran out: {MEMORY}."
        case _ if any(phrase in words for phrase in _OF_MEMORY):
            return f"Memory ran out ({_first_line(error)}): {MEMORY}."
        case _ if any(phrase in words for phrase in _OF_THREADS):
            return f"The system allows no more threads ({_first_line(error)}): {THREADS}."
        case OSError(errno=number) if number in _ADVICE:
            where = f": {error.filename}" if error.filename else ""
            return f"{error.strerror}{where}; {_ADVICE[number]}."
        case ImportError():
            return f"A library cannot be loaded ({_first_line(error)}): install Octavo again."
    return None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
