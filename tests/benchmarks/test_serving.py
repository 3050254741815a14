"""The table says what was measured."""

from benchmarks.common.figures import LoadSummary, Round, Sample, Spread
from benchmarks.common.machine import describe
from benchmarks.common.prompts import PROMPTS, prompt
from benchmarks.serving import Comparison, table


def test_table() -> None:
    loads = [
        LoadSummary.over(1, [Round((Sample(10, (0.1, 0.15)),), seconds=1.0)]),
        LoadSummary.over(16, [Round((Sample(30, (0.4, 0.5)), Sample(error="broken")), seconds=1.0)]),
    ]
    comparison = Comparison("bfloat16 eager", loads[0], Spread(1.5, 1.25, 2.0))
    lines = table(describe(), "tiny", loads, comparison).splitlines()
    assert "| Octavo | 1 | 10.0 (10.0 to 10.0) | 100 ms / 100 ms | 50 ms / 50 ms | 0 of 1 |" in lines
    assert "| Octavo | 16 | 30.0 (30.0 to 30.0) | 400 ms / 400 ms | 100 ms / 100 ms | 1 of 2 |" in lines
    assert any(line.startswith("| transformers generate (bfloat16 eager) | 1 |") for line in lines)
    assert lines[-2:] == [
        "Octavo / transformers at one stream: 1.50 (1.25 to 2.00)",
        "Octavo at 16 streams / at one: 3.00",
    ]


def test_no_two_prompts_begin_alike() -> None:
    prompts = [prompt(number) for number in range(3 * len(PROMPTS))]
    assert len({text[:10] for text in prompts}) == len(prompts)
