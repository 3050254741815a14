"""Holds short forms of published chat templates: the same order of turns, the same checks, the same forms of calls.

They are written for these tests. What a model is told at length, such as the date, is left out.
"""

from collections.abc import Mapping
from pathlib import Path

SPECIAL: Mapping[str, str] = {"bos_token": "<s>", "eos_token": "</s>"}
_FILES = sorted((Path(__file__).parent / "templates").glob("*.jinja"))
ALL: Mapping[str, str] = {path.stem: path.read_text("utf-8") for path in _FILES}

MISTRAL = ALL["mistral"]
CHATML = ALL["chatml"]
LLAMA_31 = ALL["llama_3.1"]
GEMMA = ALL["gemma"]
