"""The plot shows what is comparable, and draws the same file for the same figures."""

from pathlib import Path

import pytest

from benchmarks.quality.plot import comparable, draw, front
from benchmarks.quality.scores import Figures, Quality

TEXTS = {text: Quality(10.0, 0.02, 0.001, 0.1, 0.5) for text in ("held out", "documentation")}
LESS = {text: Quality(10.0, -0.001, 0.001, 0.1, 0.5) for text in TEXTS}
FOUND = {
    "fp32": Figures(4.0, TEXTS),
    "int4": Figures(0.625, TEXTS),
    "int4-regrouped": Figures(0.625, TEXTS),
    "llama-q8_0": Figures(1.0625, LESS),
    "llama-q4_k_m-whole": Figures(0.6, TEXTS),
    "ik-iq4_ks": Figures(0.53, TEXTS),
}


def test_only_what_is_comparable_is_shown() -> None:
    assert list(comparable(FOUND)) == ["int4-regrouped", "llama-q8_0", "ik-iq4_ks"]


def test_the_peers_line_leaves_out_what_a_smaller_one_is_better_than() -> None:
    points = [(0.6, 0.1), (0.5, 0.2), (0.62, 0.15), (1.0, -0.01)]
    assert front(points) == [(0.5, 0.2), (0.6, 0.1), (1.0, -0.01)]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_it_is_drawn(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        draw(FOUND, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if suffix == "svg":
        text = paths[0].read_text()
        assert all(label in text for label in ("Octavo int4", "Q8_0", "ik IQ4_KS"))
