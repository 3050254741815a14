"""Compiles the C kernels' files side by side, and refuses a copy without its links; pyproject.toml says all else."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from octavo.__main__ import check_links  # noqa: E402


class BuildSideBySide(build_ext):
    """A BuildSideBySide uses all cores: one file takes as long as all others together."""

    def build_extensions(self) -> None:
        compile_files = self.compiler.compile

        def compile_side_by_side(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor() as pool:
                compiled = pool.map(lambda source: compile_files([source], **options), sources)
                return [each for objects in compiled for each in objects]

        self.compiler.compile = compile_side_by_side
        super().build_extensions()


check_links(HERE / "octavo")
setup(cmdclass={"build_ext": BuildSideBySide})
