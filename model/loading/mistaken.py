"""Says what was given in place of a checkpoint, and what to give instead. It imports no torch."""

import json
from pathlib import Path

from octavo.model.config_file import ModelError
from octavo.model.prepared.source import gguf_names

CONFIG = "config.json"
ADAPTER = "adapter_config.json"  # PEFT's
ORIGINAL = ("params.json", "consolidated.safetensors")  # the layouts of Mistral and Meta
POINTER = b"version https://git-lfs.github.com/spec/"  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
FETCHED = (".json", ".safetensors", ".jinja", ".gguf")


def check_directory(directory: Path) -> None:
    """Raises ModelError for a directory that is known to be something else; any other is left to those who read it."""
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise ModelError(f"{directory} cannot be read ({error.strerror}); see to its permissions.") from None
    for name in names:
        if name.endswith(FETCHED):
            check_file(directory / name)
    weights = [name for name in names if name.endswith((".safetensors", ".tiles"))]
    own = [name for name in weights if not name.startswith(("adapter_model", "consolidated"))]
    if CONFIG in names and (own or gguf_names(directory)):
        return
    sentence = (
        _adapter(directory, names) or _gguf(directory, names) or _original(directory, names) or _inside(directory)
    )
    if sentence:
        raise ModelError(sentence)


def check_file(path: Path) -> None:
    """Raises ModelError for what an unfinished download has left under the name of a file."""
    try:
        with path.open("rb") as file:
            start = file.read(len(POINTER))
    except OSError:
        return  # Whoever needs the file says so.
    if start == POINTER:
        raise ModelError(
            f"{path} is a pointer of git-lfs and not the file itself; run `git lfs pull` in its directory, or download "
            "the file."
        )
    if path.suffix != ".jinja" and start.lstrip()[:1] == b"<":
        raise ModelError(f"{path} is a web page and not the file itself; download it from the link for downloads.")


def _adapter(directory: Path, names: list[str]) -> str | None:
    if ADAPTER not in names:
        return None
    try:
        values = json.loads((directory / ADAPTER).read_text("utf-8"))
        base = values["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    base = f", {base[:200]}," if isinstance(base, str) else ""
    return (
        f"{directory} is an adapter (LoRA), and adapters are not loaded: merge it into its base model{base} with "
        "PEFT's merge_and_unload, and give the directory of the result."
    )


def _gguf(directory: Path, names: list[str]) -> str | None:
    files = [name for name in names if name.endswith(".gguf") and not name.startswith("mmproj")]
    if not files:
        return None
    return f"{directory} holds GGUF files and no safetensors: give the path of one, such as {directory / files[0]}."


def _original(directory: Path, names: list[str]) -> str | None:
    found = next((name for name in ORIGINAL if name in names), None)
    if found is None or CONFIG in names:
        return None
    return (
        f"{directory} has {found}, which is another layout of checkpoints: take the model in the layout of "
        "transformers, with config.json and model.safetensors."
    )


def _inside(directory: Path) -> str | None:
    """Looks one floor down, and where the hub's cache has its snapshots."""
    if (directory / CONFIG).exists():
        return None
    found = sorted(path.parent for pattern in ("*", "snapshots/*") for path in directory.glob(f"{pattern}/{CONFIG}"))
    return f"{directory} has no {CONFIG}, and {found[-1]} has one: give that path." if found else None
