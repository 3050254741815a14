"""Parses the numbers that the commands which train are given."""

import argparse
import re
from collections.abc import Callable
from typing import Any

# Of each flag: its name, its parser, its default and its help.
Numbers = tuple[tuple[str, Callable[[str], Any], float | None, str], ...]


def add_numbers(parser: argparse.ArgumentParser, numbers: Numbers) -> None:
    """Adds a flag for each number."""
    for flag, parse, default, text in numbers:
        shown = "" if default is None else f" (default: {default:g})"
        parser.add_argument(f"--{flag}", type=parse, default=default, metavar="N", help=text + shown)


def whole(least: int, most: int) -> Callable[[str], int]:
    """Returns a parser of whole numbers within bounds, for argparse."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text[:50]!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def number(least: float, most: float) -> Callable[[str], float]:
    """Returns a parser of numbers within bounds, for argparse."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text[:50]!r} is not a number from {least:g} to {most:g}")
        return value

    return parse
