"""Finds what some tests need of the machine. Where it is missing they are skipped with a sentence; in CI they fail."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from benchmarks.common.machine import user_cache
from octavo.model.config import ModelError
from octavo.model.demo.default_model import build, default_directory

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium() -> str:
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    return path or missing("there is no Chromium: install the package `chromium`, and the page is tested too")


def default_model() -> Path:
    """Returns the directory of the default model, which is built where `octavo serve` looks for it."""
    try:
        return build(default_directory(user_cache()), None, lambda *_: None)
    except ModelError as error:
        missing(f"there is no default model: {error}")


def missing(sentence: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(sentence, pytrace=False)
    pytest.skip(sentence)
