"""The machine: what a figure was measured on, and the user's cache there."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile")  # what decides how fast a dtype is
PACKAGES = ("octavo", "torch", "transformers")


def describe() -> dict[str, Any]:
    """Hardware, versions and what else the machine was doing."""
    return {
        "cpu": _line(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "instructions": [flag for flag in INSTRUCTIONS if flag in _flags()],
        "threads": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _flags() -> list[str]:
    return _line(Path("/proc/cpuinfo"), "flags").split()


def _line(path: Path, key: str) -> str:
    if not path.exists():
        return ""
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
