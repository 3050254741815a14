"""Obtains the dense model that the default model is made from, with the tokenizer that it needs to be loaded itself."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from octavo.model.config import ModelError
from octavo.model.demo.pinned import SMOLLM2, PinnedModel, ReportStage, obtain

NAME = "SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True)
class DenseBase:
    """A DenseBase is a GGUF file, and a directory with its tokenizer: the file's own vocabulary lacks some bytes."""

    file: Path
    tokenizer: Path


def dense_base(cache: Path, report: ReportStage, pinned: PinnedModel = SMOLLM2) -> DenseBase:
    """Returns the dense model, unpacked below Octavo's directory in the user's cache. Raises ModelError."""
    work = cache / "dense"
    base = DenseBase(work / "dense.gguf", work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        if not base.file.is_file():
            with TemporaryDirectory(dir=work) as scratch:
                obtain(pinned, None, cache / "downloads", Path(scratch), report).replace(base.file)
        _write_tokenizer(base)
    except OSError as error:
        raise ModelError(f"The dense model cannot be written to {work} ({error.strerror}): make room there.") from error
    return base


def _write_tokenizer(base: DenseBase) -> None:
    from octavo.model.demo.dense_gguf import GGUFSource
    from octavo.model.demo.mixtral_writer import tokenizer, tokenizer_config

    if (base.tokenizer / "tokenizer_config.json").is_file():  # It is written last.
        return
    source = GGUFSource(base.file)
    vocabulary = source.vocabulary()
    (base.tokenizer / "tokenizer.json").write_text(tokenizer(vocabulary).to_str(), encoding="utf-8")
    (base.tokenizer / "chat_template.jinja").write_text(vocabulary.chat_template, encoding="utf-8")
    config = json.dumps(tokenizer_config(source.config, vocabulary), indent=2)
    (base.tokenizer / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
