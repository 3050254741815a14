"""Tests that a checkpoint is found as a directory or on the hub, and that only safe files are fetched."""

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from octavo.model.config import ModelError
from octavo.model.loading.hub import resolve

Snapshot = Callable[..., str]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Snapshot], None]:
    """Puts a function in the place of the download."""
    return lambda snapshot: monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == tmp_path


def test_a_directory_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name")


def test_only_safetensors_and_text_are_fetched(tmp_path: Path, hub: Callable[[Snapshot], None]) -> None:
    asked: dict[str, Any] = {}
    (tmp_path / "model.safetensors").touch()

    def snapshot(hub_id: str, **patterns: list[str]) -> str:
        asked.update(patterns, id=hub_id)
        return str(tmp_path)

    hub(snapshot)
    assert resolve("owner/name") == tmp_path
    assert asked["id"] == "owner/name"

    def is_fetched(name: str) -> bool:
        allowed, ignored = asked["allow_patterns"], asked["ignore_patterns"]
        return any(fnmatch(name, p) for p in allowed) and not any(fnmatch(name, p) for p in ignored)

    wanted = (
        "model-00001-of-00019.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "chat_template.jinja",
    )
    assert all(map(is_fetched, wanted))
    assert not any(map(is_fetched, ("pytorch_model.bin", "consolidated.00.pt", "consolidated.safetensors", "a.py")))


@pytest.mark.parametrize("name", ["/no/such/place", "./owner/name", "name", "a/b/c", "owner/../name", "~/no-such"])
def test_what_cannot_be_a_hub_id_is_not_asked_for(name: str, hub: Callable[[Snapshot], None]) -> None:
    hub(lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(ModelError, match="hub id such as"):
        resolve(name)


@pytest.mark.parametrize("name", ["owner/name.gguf", "name.Q4_K_M.gguf", "/no/such/name.gguf"])
def test_a_gguf_file_that_is_not_there_is_not_asked_for(name: str, hub: Callable[[Snapshot], None]) -> None:
    hub(lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(ModelError, match=f"There is no file {name}; give the path of a GGUF file"):
        resolve(name)


def test_weights_in_other_forms_are_not_fetched(tmp_path: Path, hub: Callable[[Snapshot], None]) -> None:
    (tmp_path / "config.json").touch()
    hub(lambda *_, **__: str(tmp_path))
    with pytest.raises(ModelError, match="owner/name has no weights in safetensors on the hub: if it has GGUF files"):
        resolve("owner/name")


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="give the directory"):
        resolve(str(tmp_path / "model.safetensors"))


RESPONSE = httpx.Response(404, request=httpx.Request("GET", "https://hub.test/api"))


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (GatedRepoError("gated", response=RESPONSE), "accept its terms"),
        (RepositoryNotFoundError("missing", response=RESPONSE), "check the spelling"),
        (LocalEntryNotFoundError("offline"), "check the path, or the network"),
        (OSError("disk full\nand more"), "disk full"),
    ],
    ids=["gated", "unknown", "offline", "disk full"],
)
def test_every_failure_is_one_sentence(error: Exception, advice: str, hub: Callable[[Snapshot], None]) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    hub(fail)
    with pytest.raises(ModelError, match=advice) as caught:
        resolve("owner/name")
    assert "\n" not in str(caught.value)
