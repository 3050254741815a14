"""Finds a checkpoint: a local directory, or a hub id that is downloaded into one. Torch is not imported here."""

import re
from pathlib import Path

from octavo.model.config import ModelError

EXAMPLE = "mistralai/Mixtral-8x7B-Instruct-v0.1"
WANTED = ("*.safetensors", "*.json", "*.jinja")  # never *.bin or *.pt: a pickle runs whatever code it holds
UNWANTED = ("consolidated*", "original/*", "metal/*")  # the same weights once more, under other names

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name; a name alone is no model that we could serve


def resolve(model: str) -> Path:
    """Returns the directory of a checkpoint, given as a path or as a hub id (https://huggingface.co/docs/hub).

    Downloads what is missing into the hub's own cache. Raises ModelError.
    """
    try:
        path = Path(model).expanduser()
        if path.is_dir():
            return path
        if path.exists():
            raise ModelError(f"{model} is a file; give the directory that holds it, with its config.json.")
    except (OSError, RuntimeError) as error:  # It may not be looked at, is no name of a file, or is of no such user.
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"{model[:200]} cannot be looked up ({reason}); give the path of a checkpoint.") from error
    if model.endswith(".gguf"):
        raise ModelError(f"There is no file {model}; give the path of a GGUF file that is on this machine.")
    if not _HUB_ID.fullmatch(model):
        raise ModelError(
            f"There is no file or directory {model}; give the path of a checkpoint or of a GGUF file, or a hub id such "
            f"as {EXAMPLE}."
        )
    return _download(model)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        path = Path(snapshot_download(hub_id, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)))
    except GatedRepoError as error:
        message = f"{hub_id} asks for your consent; accept its terms on the hub and log in with `hf auth login`."
        raise ModelError(message) from error
    except RepositoryNotFoundError as error:
        message = (
            f"There is no directory {hub_id}, and the hub has no such model that you may read; check the spelling."
        )
        raise ModelError(message) from error
    except LocalEntryNotFoundError as error:
        message = (
            f"There is no directory {hub_id}, and the hub cannot be reached to look it up there; "
            "check the path, or the network."
        )
        raise ModelError(message) from error
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{hub_id} cannot be downloaded ({reason}); try again, or give a local directory.") from error
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{hub_id} has no weights in safetensors on the hub: if it has GGUF files, download one and give its path, "
            "else choose another upload of the model."
        )
    return path
