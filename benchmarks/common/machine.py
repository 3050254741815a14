"""Describes the machine that a figure was measured on, and finds the user's cache there."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")  # they decide what is fast
PACKAGES = ("octavo", "torch", "transformers")


def describe() -> dict[str, Any]:
    """Returns the hardware, the versions and the load of the machine."""
    return {
        "cpu": _cpuinfo("model name") or platform.processor(),
        "instructions": [flag for flag in INSTRUCTIONS if flag in _cpuinfo("flags").split()],
        "threads": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def user_cache() -> Path:
    """Returns the directory that the user keeps caches in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _cpuinfo(key: str) -> str:
    """Returns the first value of the key in /proc/cpuinfo; an empty string without one."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
