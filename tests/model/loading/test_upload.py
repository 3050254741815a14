"""Tests that rows arrive in order, and that no buffer is filled while it is still being read."""

from contextlib import nullcontext

import pytest
import torch

from octavo.model.loading import upload
from octavo.model.loading.upload import Lane, Upload


class FakeEvent:
    """Notes whether anybody waited before a buffer was used again."""

    def __init__(self) -> None:
        self.pending = False

    def record(self, stream: object) -> None:
        assert not self.pending, "a buffer was filled before its last copy was known to be done"
        self.pending = True

    def synchronize(self) -> None:
        self.pending = False


class FakeStream:
    waited = 0
    behind: object = None

    def wait_stream(self, other: object) -> None:
        self.behind = other

    def synchronize(self) -> None:
        self.waited += 1


@pytest.fixture
def lane(monkeypatch: pytest.MonkeyPatch) -> Lane:
    """Returns a lane to a `device` that is the CPU, with buffers of 64 bytes."""
    monkeypatch.setattr(upload, "PIECE", 64)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current")
    buffers = tuple(torch.empty(64, dtype=torch.uint8) for _ in range(2))
    made = Lane(torch.device("cpu"), FakeStream(), buffers, (FakeEvent(), FakeEvent()))  # type: ignore[arg-type]
    monkeypatch.setattr(Lane, "create", classmethod(lambda cls, device: made))
    return made


@pytest.mark.parametrize("shape", [(1, 3), (4, 4), (5, 4), (37, 4), (9,), (3, 32)])
def test_every_row_arrives_once_and_in_order(lane: Lane, shape: tuple[int, ...]) -> None:
    stored = torch.arange(torch.Size(shape).numel(), dtype=torch.float16).view(shape)
    arrived: list[torch.Tensor] = []
    firsts = []
    for first, rows in Upload(torch.device("cuda"))(stored):
        firsts.append(first)
        arrived.append(rows.clone())
    assert torch.cat(arrived).equal(stored)
    assert firsts == [sum(map(len, arrived[:n])) for n in range(len(arrived))]
    assert all(rows.nbytes <= 64 for rows in arrived)
    assert lane.stream.waited == 1
    assert lane.stream.behind == "current"  # what had been enqueued there came first


def test_on_a_cpu_the_file_itself_is_handed_on() -> None:
    stored = torch.ones(3, 2)
    ((first, rows),) = Upload(torch.device("cpu"))(stored)
    assert first == 0 and rows is stored
