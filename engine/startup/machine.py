"""Finds the processors and the memory that the machine leaves to this process.

Containers bound both through control groups (https://docs.kernel.org/admin-guide/cgroup-v2.html), which neither
os.cpu_count nor MemAvailable knows of.
"""

import ctypes
import math
import os
from collections.abc import Iterator
from pathlib import Path

from octavo.model.config import ModelError

ROOT = Path("/")
GIB = 2**30

# A limit of a process's own memory has a name in /proc/self/limits. Beside it stand what counts in /proc/self/status,
# how a shell sets it, and the bytes below which no engine starts, however small the model is.
LIMITS = (
    ("Max address space", "VmSize:", "ulimit -v", 2**30),
    ("Max data size", "VmData:", "ulimit -d", 448 * 2**20),
)


def processors(root: Path = ROOT) -> int:
    """Returns how many processors may be busy at once, by the scheduler and the CPU quota; at least one."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # This is not Linux.
        allowed = os.cpu_count() or 1
    quotas = [quota for group in _groups(root) if (quota := _cpu_quota(group)) is not None]
    return max(1, min([allowed, *(math.ceil(quota) for quota in quotas)]))


def available_memory(root: Path = ROOT) -> int:
    """Returns how many bytes can be allocated before the machine swaps or a control group's limit ends the process."""
    left = [memory for group in _groups(root) if (memory := _group_memory(group)) is not None]
    used = _fields(root / "proc/self/status")
    own = [limit - used.get(count, 0) * 1024 for _, count, _, _ in LIMITS if (limit := _limits(root).get(count))]
    return max(0, min([_machine_memory(root), *left, *own]))


def check_device(name: str, driver: str = "libcuda.so.1") -> None:
    """Raises ModelError for a GPU that is asked for where its driver is not installed; torch says so only later."""
    if name != "cuda":
        return
    try:
        ctypes.CDLL(driver)
    except OSError as error:
        raise ModelError(
            f"--device cuda was asked for, and there is no NVIDIA driver ({driver}) here: install it, "
            "give the container its GPU (docker run --gpus all), or use --device cpu."
        ) from error


def check_limits(root: Path = ROOT) -> None:
    """Raises ModelError where a process may have less memory than the smallest engine takes."""
    limits = _limits(root)
    for name, count, command, least in LIMITS:
        if limits.get(count, least) < least:
            raise ModelError(
                f"The {name.removeprefix('Max ')} of a process is limited to {limits[count] / GIB:.2f} GiB ({command}) "
                f"and an engine takes {least / GIB:.2f} GiB besides its model's weights: raise the limit, or remove it."
            )


def limit_in_force(root: Path = ROOT) -> str | None:
    """Returns a clause about the first limit of a process's own memory; None where there is none."""
    limits = _limits(root)
    for name, count, command, _ in LIMITS:
        if count in limits:
            return (
                f"the {name.removeprefix('Max ')} of a process is limited to {limits[count] / GIB:.2f} GiB ({command})"
            )
    return None


def _limits(root: Path) -> dict[str, int]:
    """Returns the limits in bytes, by what counts against them; one that is not set is left out."""
    found = {}
    for line in _text(root / "proc/self/limits").splitlines():
        for name, count, _, _ in LIMITS:
            soft = line.removeprefix(name).split()[:1]
            if line.startswith(name) and soft and soft[0].isdecimal():
                found[count] = int(soft[0])
    return found


def _machine_memory(root: Path) -> int:
    """Returns the bytes that the machine as a whole can give."""
    kilobytes = _fields(root / "proc/meminfo").get("MemAvailable:")
    if kilobytes is None:  # This is not Linux: all that is built in counts as available.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return kilobytes * 1024


def _groups(root: Path) -> Iterator[Path]:
    """Yields the directories of this process's control groups and of all groups around them, of both versions.

    A line of /proc/self/cgroup is `0::/path` (version 2) or `4:cpu,cpuacct:/path`. Inside a container the path may be
    the host's, which is not there to read; the directory above it that is there is then the container's own.
    """
    mounts = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            mount = mounts / controller
            inner = mount / path.lstrip("/")
            yield from (group for group in (inner, *inner.parents) if group.is_relative_to(mount) and group.is_dir())


def _cpu_quota(group: Path) -> float | None:
    """Returns how many processors the group may keep busy; None where it sets no bound."""
    quota, _, period = (_text(group / "cpu.max") or "max 100000").partition(" ")
    if quota == "max":  # Version 2 has no bound, or this is version 1.
        quota = _text(group / "cpu.cfs_quota_us") or "-1"
        period = _text(group / "cpu.cfs_period_us") or "100000"
    return int(quota) / int(period) if int(quota) > 0 else None


def _group_memory(group: Path) -> int | None:
    """Returns the bytes between what the group uses and its limit; None where it has no limit.

    Page cache counts as free, since it is dropped first.
    """
    for limit, usage, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        bound, used = _text(group / limit), _text(group / usage)
        if bound.isdecimal() and used.isdecimal():
            statistics = _fields(group / "memory.stat")
            cached = sum(statistics.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
            return int(bound) - int(used) + cached
    return None


def _fields(path: Path) -> dict[str, int]:
    """Returns the numbers of the lines of the form `name number ...`, by name."""
    words = [line.split() for line in _text(path).splitlines()]
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}


def _text(path: Path) -> str:
    """Returns what is in the file; "" where it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
