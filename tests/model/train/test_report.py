"""The report is one page that loads nothing, escapes names, and says "no difference" where there is none."""

import re
import xml.etree.ElementTree as ET
from typing import Any

from octavo.model.train.plots import curves, intervals, shares, smoothed
from octavo.model.train.report import page, sentence, summary
from octavo.model.train.statistics import Difference

NASTY = "<script>alert('x')</script>&"


def against(difference: float, low: float, high: float) -> dict[str, Any]:
    return {"difference": difference, "low": low, "high": high, "documents": 12, "verdict": ""}


def found(twin: bool = True) -> dict[str, Any]:
    compared = {"base": against(-0.5, -0.7, -0.3), "random": against(0.1, -0.1, 0.3), "single": against(0.2, 0.1, 0.3)}
    compared |= {"twin": against(-0.1, -0.3, 0.1)} if twin else {}
    losses = {"sparse": 2.0} | {name: 2.0 - each["difference"] for name, each in compared.items()}
    common = {"losses": losses, "against": compared, "use": [0.5, 0.25, 0.25], "entropy": 0.4}
    domains = [
        {"name": name, "documents": {"test": 6}, "first": [0.1, 0.7, 0.2], "use_by_layer": [[0.5, 0.25, 0.25]]} | common
        for name in ("code", NASTY)
    ]
    trained = {"domains": ["code"], "scale": 0.5, "validation": {str(n / 4): 2.0 for n in range(5)}}
    unchanged = trained | {"name": NASTY, "scale": 0.0}
    return {
        "base": "tiny",
        "steps": 4,
        "seed": 0,
        "tokens": 100,
        "top_k": 2,
        "rank": 4,
        "length": 16,
        "experts": [{"name": "original", "domains": []}, trained | {"name": "code"}, unchanged],
        "best_single": "code",
        "domains": domains,
        "overall": common | {"dead": 1},
        "layers": {
            "entropy": [0.5, 0.9],
            "dead": [1, 0],
            "information": [0.1, 0.9],
            "information_by_chance": [0.1, 0.1],
            "information_by_chance_95": [0.2, 0.2],
            "most_information": 1.0,
        },
        "curves": {"code": [3.0, 2.5, 2.0], NASTY: [3.0], "routers": [2.0, 1.0]},
    }


def test_the_page_holds_everything_and_loads_nothing() -> None:
    text = page(found())
    assert text.count("<svg") == 4 + 2 + 1 + 1
    assert "<script" not in text and not re.search(r"(src|href)=|url\(|@import|http", text)
    assert "No scale helped &lt;script&gt;" in text
    assert "In 1 of 2 layers" in text and "--steps 4 --seed 0" in text
    assert "Dead experts, with less than a tenth of a fair share: 1 of 6" in text


def test_its_sentences_say_what_is_and_what_is_not_so() -> None:
    told = summary(found())
    where = "(95% interval -0.7000 to -0.3000, 12 documents)"
    assert told[0] == f"The loss is lower than that of the base: by 0.5000 nats a token {where}."
    assert told[1].startswith("There is no difference from the base trained densely on the same tokens: -0.1000 nats")
    assert told[2].startswith("There is no difference from random routing")
    assert told[3].startswith("The loss is higher than that of the best single expert: by 0.2000")
    assert "twin is the base" in page(found()) and "twin is" not in page(found(twin=False))
    assert summary(found(twin=False))[-1] == "There was no dense training to compare with."
    assert sentence(Difference(0.0, 0.0, 0.0, 3), "x").startswith("There is no difference from x")


def drawn(svg: str) -> ET.Element:
    return ET.fromstring(svg.replace("<figure>", "<figure xmlns:x='x'>"))


def test_plots_are_well_formed_and_place_what_they_show() -> None:
    rows = [
        ("a", Difference(-1.0, -2.0, -0.5, 5)),
        (NASTY, Difference(0.1, -0.2, 0.4, 5)),
        ("c", Difference(2, 1, 3, 5)),
    ]
    plot = drawn(intervals(rows, NASTY))
    groups = list(plot.iter("g"))
    assert [group.get("class") for group in groups] == ["better", "same", "worse"]
    zero = next(float(line.get("x1", "")) for line in plot.iter("line") if line.get("class") == "zero")
    places = [float(circle.get("cx", "")) for circle in plot.iter("circle")]
    assert places[0] < zero < places[1] < places[2]
    cells = [cell.get("fill-opacity") for cell in drawn(shares({NASTY: [0.25, 0.75]}, ["x", "y"], "c")).iter("rect")]
    assert cells == ["0.250", "0.750"]
    lines = [
        line.get("points", "") for line in drawn(curves({"a": [1.0, 3.0], NASTY: [2.0]}, "x", "c")).iter("polyline")
    ]
    (left, high), (right, low) = [tuple(map(float, point.split(","))) for point in lines[0].split()]
    assert left < right and high > low, "a larger value stands higher"


def test_curves_are_thinned_by_means() -> None:
    assert smoothed([1.0, 3.0, 5.0], points=2) == [2.0, 5.0]
    assert smoothed([1.0, 2.0]) == [1.0, 2.0] and len(smoothed(list(range(1001)))) <= 200
