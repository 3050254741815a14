"""Writes the report of an upcycling: report.json, and report.html, one page without any other file."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from octavo.model.train.compare import OTHERS, Outcome, compare, findings
from octavo.model.train.evaluate import SCALES
from octavo.model.train.files import write_whole
from octavo.model.train.plan import documents_to_measure
from octavo.model.train.plots import curves, intervals, shares, smoothed
from octavo.model.train.progress import Meter
from octavo.model.train.statistics import Difference

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #fff; --soft: #5b6675; --line: #c8ced6; --blue: #0072b2;
  --orange: #d55e00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --paper: #14181f; --soft: #9aa5b4; --line: #3a4351;
  --blue: #56b4e9; --orange: #e69f00 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 46rem;
  margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; font-size: 14px; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
figure { margin: 1.5rem 0 } figcaption, small { color: var(--soft); font-size: 14px }
svg { width: 100%; height: auto; font-size: 12px } text { fill: var(--ink) } .zero { stroke: var(--line) }
.span { stroke-width: 2; stroke: currentColor } .better, .better circle { color: var(--blue); fill: var(--blue) }
.worse, .worse circle { color: var(--orange); fill: var(--orange) } .same { color: var(--soft); fill: var(--soft) }
.cell { fill: var(--blue) } .dark { fill: var(--paper) } .series { fill: none; stroke-width: 2 }
.dashed { stroke-dasharray: 4 3 } .s0 { stroke: #0072b2 } .s1 { stroke: #d55e00 } .s2 { stroke: #009e73 }
.s3 { stroke: #cc79a7 } .s4 { stroke: #e69f00 } .s5 { stroke: #56b4e9 } .s6 { stroke: #8c7a00 } .s7 { stroke: #7f7f7f }
"""


def write_report(directory: Path, outcome: Outcome, name: str, meter: Meter) -> dict[str, Any]:
    """Measures, writes both files, and returns the JSON. Raises OSError."""
    total, done = documents_to_measure(outcome.bench), 0

    def passed(documents: int, seconds: float) -> None:
        nonlocal done
        done += documents
        meter.advance("measuring", done, total, seconds)

    found = findings(outcome, compare(outcome, passed), name)
    write_whole(directory / "report.json", (json.dumps(found, indent=2) + "\n").encode())
    write_whole(directory / "report.html", page(found).encode())
    return found


def page(found: dict[str, Any]) -> str:
    """Returns the whole page of a report."""
    sections = (_summary(found), _losses(found), _use(found), _routing(found), _training(found))
    return document(f"{found['base']} with {len(found['experts'])} experts", "".join(sections))


def document(title: str, body: str) -> str:
    """Returns a page without any other file."""
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>{body}</html>\n"
    )


def summary(found: dict[str, Any]) -> list[str]:
    """Returns a sentence for each model that the sparse one is compared with."""
    against = found["overall"]["against"]
    sentences = [sentence(_difference(against[other]), OTHERS[other]) for other in OTHERS if other in against]
    return sentences if "twin" in against else [*sentences, "There was no dense training to compare with."]


def _summary(found: dict[str, Any]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in summary(found))}</ul>"


def sentence(found: Difference, other: str) -> str:
    """Says in words how the sparse model's loss differs from that of another."""
    where = f"95% interval {found.low:+.4f} to {found.high:+.4f}, {found.documents} documents"
    if found.verdict == "no difference":
        return f"There is no difference from {other}: {found.mean:+.4f} nats a token ({where})."
    return f"The loss is {found.verdict} than that of {other}: by {abs(found.mean):.4f} nats a token ({where})."


def _difference(against: dict[str, Any]) -> Difference:
    return Difference(against["difference"], against["low"], against["high"], against["documents"])


def _losses(found: dict[str, Any]) -> str:
    variants = ["sparse", *found["overall"]["against"]]
    rows = [
        [domain["name"], str(domain["documents"]["test"])] + [f"{domain['losses'][each]:.3f}" for each in variants]
        for domain in found["domains"]
    ]
    count = sum(domain["documents"]["test"] for domain in found["domains"])
    twin = f"twin is {OTHERS['twin']}; " if "twin" in variants else ""
    rows.append(["all", str(count)] + [f"{found['overall']['losses'][each]:.3f}" for each in variants])
    return (
        "<h2>Loss on held-out documents</h2>"
        + _table(["domain", "documents", *variants], rows)
        + f"<p><small>In nats a token, over the first {found['length']} tokens of each document. The base is "
        f"{escape(found['base'])}; {twin}random chooses "
        f"{found['top_k']} experts by lot; single is the expert {escape(found['best_single'])} alone, which validation "
        "text chose.</small>" + "".join(_intervals(found, other) for other in variants[1:])
    )


def _intervals(found: dict[str, Any], other: str) -> str:
    rows = [(each["name"], _difference(each["against"][other])) for each in _with_all(found)]
    return intervals(
        rows,
        f"Loss of the sparse model less that of {OTHERS[other]}, in nats a token, with the bootstrap's 95% intervals "
        "over documents. Left of 0 the sparse model is better; grey means no difference.",
    )


def _with_all(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the domains, and what holds for all of them together."""
    return [*found["domains"], found["overall"] | {"name": "all"}]


def _use(found: dict[str, Any]) -> str:
    names = [expert["name"] for expert in found["experts"]]
    weight = {each["name"]: each["use"] for each in _with_all(found)}
    first = {each["name"]: each["first"] for each in found["domains"]}
    return (
        "<h2>Which experts serve which domain</h2>"
        + shares(weight, names, _fair("Share of the routers' weight in percent", names))
        + shares(first, names, _fair("Share of tokens for which an expert comes first, in percent", names))
        + _table(["domain", "entropy of use"], [[each["name"], f"{each['entropy']:.3f}"] for each in _with_all(found)])
        + "<p><small>Entropy is 0 where one expert does everything, and 1 where all do the same; it is the mean over "
        f"layers. Dead experts, with less than a tenth of a fair share: {found['overall']['dead']} of "
        f"{len(names) * len(found['layers']['dead'])} over all layers.</small>"
    )


def _fair(caption: str, names: Sequence[str]) -> str:
    return f"{caption}, over all layers; a fair share is {100 / len(names):.0f}."


def _routing(found: dict[str, Any]) -> str:
    layers = found["layers"]
    lines = {
        "domain and first expert": layers["information"],
        "shuffled domains, mean": layers["information_by_chance"],
        "shuffled domains, 95%": layers["information_by_chance_95"],
    }
    pairs = zip(layers["information"], layers["information_by_chance_95"], strict=True)
    above = sum(told > chance for told, chance in pairs)
    return (
        "<h2>How much the routing tells of the domain</h2>"
        f"<p>In {above} of {len(layers['information'])} layers, the first expert tells more of a token's domain than "
        "it does when the documents' domains are shuffled."
        + curves(
            lines,
            "first layer to last",
            f"Mutual information in bits; to know the domain is worth {layers['most_information']:.2f}.",
        )
    )


def _training(found: dict[str, Any]) -> str:
    scales = [
        [expert["name"], f"{expert['scale']:g}", *(f"{loss:.3f}" for loss in expert["validation"].values())]
        for expert in found["experts"]
        if expert["domains"]
    ]
    unchanged = [row[0] for row in scales if row[1] == "0"]
    note = (
        f"<p>No scale helped {escape(', '.join(unchanged))} on validation text: there the expert equals the original."
        if unchanged
        else ""
    )
    return (
        "<h2>Training</h2>"
        + curves(
            {name: smoothed(curve) for name, curve in found["curves"].items()},
            "first step to last",
            "Loss of the training text, in nats a token, averaged over neighbouring steps.",
        )
        + _table(["expert", "scale", *(f"loss at {scale:g}" for scale in SCALES)], scales)
        + "<p><small>Each expert's change is multiplied by the scale at which validation text has the lowest loss."
        f"</small>{note}<p><small>{found['steps']} steps for each expert (--steps {found['steps']} --seed "
        f"{found['seed']} repeats them), {found['tokens']} tokens for all experts together, rank {found['rank']}."
        "</small>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(values: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(value)}</{tag}>" for value in values) + "</tr>"

    return f"<table>{cells(head, 'th')}{''.join(cells(row, 'td') for row in rows)}</table>"
