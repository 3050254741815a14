"""`octavo health` finds the server wherever it listens, and its status says whether that takes requests."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from octavo.server import cli, options


class Server(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path in ("/health", "/octavo/health") else 404)
        self.end_headers()
        self.wfile.write(b'{"status": "ok"}')

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    for option in options.OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # counts for nothing
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("path", ["", "/", "/octavo"])
def test_a_url_that_is_given(port: int, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["health", f"http://127.0.0.1:{port}{path}"]) == 0
    assert "ok" in capsys.readouterr().out
    assert cli.main(["health", f"http://127.0.0.1:{port}/elsewhere"]) == 1


def test_the_url_that_the_server_has_left(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "url"
    monkeypatch.setenv("OCTAVO_ADDRESS_FILE", str(file))
    monkeypatch.setenv("OCTAVO_PORT", "1")
    assert cli.main(["health"]) == 1
    file.write_text(f"http://127.0.0.1:{port}\n")
    assert cli.main(["health"]) == 0


def test_the_port_of_the_environment(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_HOST", "0.0.0.0")
    monkeypatch.setenv("OCTAVO_PORT", str(port))
    assert cli.main(["health"]) == 0


def test_a_server_that_does_not_take_requests(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "status", 503)
    assert cli.main(["health", f"http://127.0.0.1:{port}"]) == 1


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:x", "http://127.0.0.1:99999", "http://[::1", "127.0.0.1:8000", "ftp://x", "http://"]
)
def test_what_is_no_url(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["health", url]) == 2
    assert capsys.readouterr().err.count("\n") == 1
