"""One process writes at a time, nothing is left under the final name that is not whole, and a full disk is told."""

import errno
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from octavo.model.prepared.tile_file import FORMAT, Identity
from octavo.model.prepared.writer import Busy, Partial, disk_full, hidden, locked
from tests.model.prepared.test_tile_file import SOURCE

IDENTITY = Identity("int8", {}, False, SOURCE, "0.0.1")


def hold(target: Path, ready: Any, release: Any) -> None:
    with locked(target, wait=None):
        ready.set()
        release.wait()


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    target = tmp_path / "octavo-int8.tiles"
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(target, ready, release))
    other.start()
    assert ready.wait(60)
    with pytest.raises(Busy), locked(target, wait=None):
        pass
    with locked(target, wait=release.set):  # It waits until the other one is done.
        assert hidden(target, "lock").exists()
    other.join()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_the_dead_holds_nobody_up(tmp_path: Path) -> None:
    target = tmp_path / "octavo-int8.tiles"
    hidden(target, "lock").touch()
    with locked(target, wait=None):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_name_comes_last(tmp_path: Path) -> None:
    target = tmp_path / "octavo-int8.tiles"
    target.write_bytes(b"an older one, which may be mapped")
    with target.open("rb") as mapped, Partial(target, IDENTITY) as partial:
        partial.add("first", [("a", {}, memoryview(b"1"))])
        assert target.read_bytes() == b"an older one, which may be mapped"
        partial.publish(SOURCE)
        assert mapped.read() == b"an older one, which may be mapped"
    assert target.read_bytes().startswith(b'{"octavo_tiles": %d' % FORMAT)
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    told = disk_full(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "x.tiles")
    assert told is not None and "No space left on device" in str(told) and "--out" in str(told)
    assert disk_full(OSError(errno.EIO, "Input/output error"), tmp_path / "x.tiles") is None
    with Partial(tmp_path / "x.tiles", IDENTITY) as partial:
        partial.add("first", [("a", {}, memoryview(b"1"))])
        partial.discard()
    assert list(tmp_path.iterdir()) == []
