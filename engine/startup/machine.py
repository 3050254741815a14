"""Finds the processors and the memory that the machine leaves to this process.

Containers bound both through control groups (https://docs.kernel.org/admin-guide/cgroup-v2.html), which neither
os.cpu_count nor MemAvailable knows of.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


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
    return max(0, min([_machine_memory(root), *left]))


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
