"""Writes what a checkpoint's directory has beside its weights, from a GGUF file, and links the file into it.

The directory then serves as any checkpoint does. It lies in the user's cache, and stays while the file is the same.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from octavo.model.config_file import ModelError
from octavo.model.gguf.architectures import architecture_of
from octavo.model.gguf.config import config_of
from octavo.model.gguf.fields import Fields
from octavo.model.gguf.file import GgufModel, split_paths
from octavo.model.gguf.names import pieces
from octavo.model.gguf.vocabulary import Vocabulary
from octavo.model.prepared.source import gguf_name, gguf_names
from octavo.model.prepared.writer import hidden

FORMAT = 2  # of the directory; raised whenever other files would be written
STAMP = "made-from"  # the file that says what the directory was made of
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}


@dataclass(frozen=True, slots=True)
class Order:
    """An Order says of what a directory is made."""

    path: Path  # of the GGUF file, or of a part of a model that is split
    tokenizer: Path | None = None  # a directory that has it; None: the one that was given before, or the file's own

    @property
    def name(self) -> str:
        """Returns what clients call the model."""
        stem = self.path.name.removesuffix(".gguf")
        return stem if len(split_paths(self.path)) == 1 else stem.rsplit("-", 3)[0]


def directory_for(order: Order, cache: Path) -> Path:
    """Returns the directory of a file, made anew unless it is there and the file is the same. Raises ModelError."""
    own = order.path.resolve()
    directory = cache / "gguf" / f"{order.name}-{hashlib.sha256(os.fsencode(own)).hexdigest()[:16]}"
    before = _stamp_of(directory)
    given = None if order.tokenizer is None else str(order.tokenizer.resolve())
    try:
        stamp = {"format": FORMAT, "files": _states(own), "tokenizer": given or before.get("tokenizer")}
        if stamp != before:
            _make(directory, own, stamp)
    except OSError as error:
        raise ModelError(
            f"{error.filename or order.path} cannot be used ({error.strerror}); see to its place."
        ) from None
    return directory


def _states(path: Path) -> list[list[Any]]:
    """Returns path, size and time of all files of a model. Raises ModelError and OSError."""
    paths = split_paths(path)
    if absent := next((each for each in paths if not each.is_file()), None):
        raise ModelError(f"{path.parent} lacks {absent.name} of a model in {len(paths)} files; download it.")
    return [[str(each), each.stat().st_size, each.stat().st_mtime_ns] for each in paths]


def _stamp_of(directory: Path) -> dict[str, Any]:
    """Returns what a directory was made of; nothing where it is not there or not whole."""
    try:
        stamp = json.loads((directory / STAMP).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _make(directory: Path, path: Path, stamp: dict[str, Any]) -> None:
    """Writes all files; the stamp comes last."""
    model = GgufModel.read(path)
    architecture = architecture_of(model)
    config = config_of(model, architecture)
    pieces(model, architecture, config)  # It refuses tensors that no checkpoint has.
    vocabulary = Vocabulary.of(model)
    if len(vocabulary.tokens) > config["vocab_size"]:
        rows = f"{len(vocabulary.tokens)} tokens, and its embedding has {config['vocab_size']} rows"
        raise vocabulary.fields.error(f"it has {rows}")
    ends = vocabulary.ends()
    texts = {
        "config.json": _json(config | {"eos_token_id": ends} | _quantisation(model)),
        "generation_config.json": _json({"eos_token_id": ends} | _sampling(model)),
    }
    given = None if stamp["tokenizer"] is None else Path(stamp["tokenizer"])
    texts |= _own_tokenizer(model, vocabulary) if given is None else _given_tokenizer(model, vocabulary, given)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / STAMP).unlink(missing_ok=True)
    for name in (*TOKENIZER_FILES, *gguf_names(directory)):
        if name not in texts:
            (directory / name).unlink(missing_ok=True)
    for number, each in enumerate(model.paths, start=1):
        _appear(directory / gguf_name(number, len(model.paths)), target=each)
    for name, text in (texts | {STAMP: _json(stamp)}).items():
        _appear(directory / name, text=text)


def _quantisation(model: GgufModel) -> dict[str, Any]:
    """Returns the field of config.json that tells how weights are quantised; none where no weight is."""
    types = sorted({each.type.name for each in model.tensors.values() if each.type.weights > 1})
    return {"quantization_config": {"quant_method": "gguf", "types": types}} if types else {}


def _appear(path: Path, text: str = "", target: Path | None = None) -> None:
    """Makes a file with a text, or a link to a target, which appears whole. Raises OSError."""
    unfinished = hidden(path, f"{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    if target is None:
        unfinished.write_text(text, "utf-8")
    else:
        unfinished.symlink_to(target)
    unfinished.replace(path)


def _own_tokenizer(model: GgufModel, vocabulary: Vocabulary) -> dict[str, str]:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    template = _template(model)
    config = settings | vocabulary.named() | ({} if template is None else {"chat_template": template})
    return {"tokenizer.json": vocabulary.tokenizer().to_str(), "tokenizer_config.json": _json(config)}


def _given_tokenizer(model: GgufModel, vocabulary: Vocabulary, directory: Path) -> dict[str, str]:
    """Returns the files of a tokenizer. Raises ModelError unless its tokens are those of the model."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{directory} has no tokenizer.json; give the directory of the model's (fast) tokenizer.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{path} is not a readable tokenizer ({error}); fetch or save it again.") from None
    vocabulary.check(tokenizer)
    found = {name: directory / name for name in TOKENIZER_FILES if (directory / name).is_file()}
    try:
        texts = {name: file.read_text("utf-8") for name, file in found.items()}
    except UnicodeDecodeError as error:
        raise ModelError(f"A file in {directory} is not UTF-8 text ({error}); fetch or save it again.") from None
    template = _template(model)
    if template is not None and "chat_template" not in texts.get("tokenizer_config.json", ""):
        texts = {"chat_template.jinja": template} | texts
    return texts


def _template(model: GgufModel) -> str | None:
    fields = Fields(model.paths[0], model.metadata, "tokenizer.")
    return fields.text("chat_template") if fields.get("chat_template") else None


def _sampling(model: GgufModel) -> dict[str, Any]:
    """Returns the sampling that the metadata recommend."""
    fields = Fields(model.paths[0], model.metadata, "general.sampling.")
    numbers = {name: fields.get(key) for key, name in _SAMPLING.items()}
    found = {name: value for name, value in numbers.items() if value is not None}
    return {name: float(f"{value:.7g}") if isinstance(value, float) else value for name, value in found.items()}


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, indent=2) + "\n"
