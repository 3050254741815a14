"""A mistake that only a real process or engine finds is told in one sentence, and the exit status is 2."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.harness import Server, started, write_model


def refusal(directory: Path, model: Path, *flags: str) -> str:
    """Returns the last line that `octavo serve` prints before it ends with status 2."""
    command = ["-m", "octavo", "serve", model, "--kv-cache-memory", "1MiB", *flags]
    with started(command, directory) as server:
        assert server.exit_status() == 2, server.output
        server.wait_until_nothing_is_left()
        assert "Traceback" not in server.output
        last = server.output.splitlines()[-1]
    assert last.startswith("octavo: ")
    return last


def test_a_port_in_use(tmp_path: Path) -> None:
    """The port is tried before the checkpoint is looked at: there is none."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"port {port} (Address already in use)" in refusal(tmp_path, tmp_path, "--port", str(port))


def test_an_engine_that_fails_before_http_is_there(serve_fake: Callable[..., Server]) -> None:
    server = serve_fake(fatal="Give another directory.")
    assert server.exit_status() == 2
    server.wait_until_nothing_is_left()
    assert server.output.splitlines()[1:] == [
        "loading weights: 0 %",
        "loading weights: 100 %",
        "octavo: Give another directory.",
    ]


def test_an_address_space_without_room_for_an_engine(tmp_path: Path) -> None:
    """It is found at once: the engine would die of it again and again, with its libraries' last words."""
    code = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29));"
        "os.execv(sys.executable, [sys.executable, '-m', 'octavo', 'serve', *sys.argv[1:]])"
    )
    with started(["-c", code, write_model(tmp_path / "tiny")], tmp_path) as server:
        assert server.exit_status() == 2, server.output
        server.wait_until_nothing_is_left()
    assert server.output.count("\n") == 1
    assert server.output.startswith("octavo: The address space of a process is limited to 0.50 GiB (ulimit -v)")


def truncate(model: Path) -> None:
    shard = model / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])


def lose_the_shard(model: Path) -> None:
    (model / "model.safetensors").unlink()


def widen(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))


@pytest.mark.parametrize(
    ("spoil", "flags", "word"),
    [
        (truncate, (), "model.safetensors"),
        (lose_the_shard, (), "safetensors"),
        (widen, (), "shape"),
        (lambda model: None, ("--max-model-len", "500", "--kv-cache-memory", "64KiB"), "--kv-cache-memory"),
    ],
    ids=["truncated", "no shard", "wrong shape", "context beyond the pool"],
)
def test_the_engines_own_finds(
    tmp_path: Path, spoil: Callable[[Path], None], flags: tuple[str, ...], word: str
) -> None:
    model = write_model(tmp_path / "tiny")
    spoil(model)
    assert word in refusal(tmp_path, model, *flags)
