"""Processors and memory are read from made-up trees of /proc and /sys."""

import os
from pathlib import Path

import pytest

from octavo.engine.startup import machine
from octavo.model.config import ModelError

PROCESSORS = machine.processors(Path("/nowhere"))  # this machine's, without control groups
MEMINFO = "MemTotal:  2000 kB\nMemAvailable:  1000 kB\nHugePages_Total:  0\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    """Writes the files, by their paths below the root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_without_control_groups_the_machine_decides(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/meminfo": MEMINFO})
    assert machine.available_memory(tmp_path) == 1000 * 1024
    assert 1 <= machine.processors(tmp_path) <= (os.cpu_count() or 1)


def test_version_two_and_the_groups_around_it(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/outer/inner",
            "sys/fs/cgroup/outer/memory.max": "500000",
            "sys/fs/cgroup/outer/memory.current": "300000",
            "sys/fs/cgroup/outer/memory.stat": "anon 1\ninactive_file 40000\nactive_file 10000",
            "sys/fs/cgroup/outer/inner/memory.max": "max",
            "sys/fs/cgroup/outer/inner/memory.current": "1000",
            "sys/fs/cgroup/outer/inner/cpu.max": "50000 100000",
        },
    )
    assert machine.available_memory(tmp_path) == 250_000
    assert machine.processors(tmp_path) == 1


def test_version_one_seen_from_inside_a_container(tmp_path: Path) -> None:
    """The path is the host's, and the mount itself is the container's group."""
    tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "4:memory:/docker/0123\n2:cpu,cpuacct:/docker/0123",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "700000",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "100000",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert machine.available_memory(tmp_path) == 600_000
    assert machine.processors(tmp_path) == 1


@pytest.mark.parametrize("quota", ["max 100000", "99900000 100000"])
def test_a_generous_quota_does_not_add_processors(tmp_path: Path, quota: str) -> None:
    tree(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": quota})
    assert machine.processors(tmp_path) == PROCESSORS


def test_a_group_beyond_its_limit_has_no_memory_left(tmp_path: Path) -> None:
    files = {"memory.max": "1000", "memory.current": "2000"}
    tree(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/"})
    tree(tmp_path / "sys/fs/cgroup", files)
    assert machine.available_memory(tmp_path) == 0


def test_this_machine() -> None:
    assert machine.processors() >= 1
    assert machine.available_memory() > 0


def test_a_gpu_without_a_driver_is_refused_before_torch_is_loaded() -> None:
    for name in ("auto", "cpu"):
        machine.check_device(name, "libnobody-has-this.so")
    machine.check_device("cuda", "libc.so.6")
    with pytest.raises(ModelError, match="there is no NVIDIA driver"):
        machine.check_device("cuda", "libnobody-has-this.so")


LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max data size             {data:<20} unlimited            bytes
Max address space         {space:<20} unlimited            bytes"""


def limited(root: Path, space: int | str = "unlimited", data: int | str = "unlimited") -> Path:
    status = "Name:\tpython\nVmSize:\t  100 kB\nVmData:\t  50 kB"
    files = {"proc/meminfo": MEMINFO, "proc/self/status": status}
    return tree(root, files | {"proc/self/limits": LIMITS.format(space=space, data=data)})


def test_a_processs_own_limits_bound_its_memory(tmp_path: Path) -> None:
    assert machine.available_memory(limited(tmp_path)) == 1000 * 1024
    assert machine.available_memory(limited(tmp_path, space=400 * 1024)) == 300 * 1024
    assert machine.available_memory(limited(tmp_path, data=400 * 1024)) == 350 * 1024
    assert machine.available_memory(limited(tmp_path, data=1024)) == 0


def test_limits_in_which_no_engine_starts_are_refused(tmp_path: Path) -> None:
    machine.check_limits(tmp_path / "nowhere")
    machine.check_limits(limited(tmp_path, space=2**30, data=2**30))
    assert machine.limit_in_force(limited(tmp_path)) is None
    with pytest.raises(ModelError, match=r"address space of a process is limited to 0\.50 GiB \(ulimit -v\)"):
        machine.check_limits(limited(tmp_path, space=2**29))
    with pytest.raises(ModelError, match=r"data size of a process is limited to 0\.06 GiB \(ulimit -d\)"):
        machine.check_limits(limited(tmp_path, data=2**26))
    assert machine.limit_in_force(tmp_path) == "the data size of a process is limited to 0.06 GiB (ulimit -d)"
