"""Refuses to build from a copy of the repository that has lost its links; pyproject.toml says all else."""

import sys
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from octavo.__main__ import check_links  # noqa: E402

check_links(HERE / "octavo")
setup()
