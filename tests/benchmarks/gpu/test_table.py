"""What a run on a GPU prints: shares of floors, ratios to others, and what did not agree."""

import json

from benchmarks.common.figures import Spread
from benchmarks.gpu.table import Ceilings, Checked, Measured, document, markdown

CEILINGS = Ceilings(read=3e12, product=8e14, copy=5e10)
ROW = Measured(
    section="experts of one layer",
    name="bf16, 8 tokens",
    floor=0.8e-3,
    time=Spread(1e-3, 0.9e-3, 1.2e-3),
    others={"peer": Spread(1.5e-3, 1.4e-3, 1.6e-3)},
)


def test_the_floor_is_what_takes_longer():
    assert CEILINGS.floor(3e9) == 1e-3
    assert CEILINGS.floor(3e9, flop=1.6e12) == 2e-3


def test_a_row_has_its_share_and_the_others_ratios():
    lines = markdown({"device": "H"}, CEILINGS, ([], {}), [ROW]).splitlines()
    assert lines[0] == "device H"
    assert "3.00 TB/s" in lines[2] and "800 TFLOP/s" in lines[2] and "50.0 GB/s" in lines[2]
    assert lines[-1] == "| bf16, 8 tokens | 800.0 us | 1.00 ms (900.0 us to 1.20 ms) | 80% | peer 1.50 |"


def test_what_is_wrong_is_named_and_a_nan_is_wrong():
    checks = [Checked("fine", 0.001, 0.01), Checked("wrong", 0.02, 0.01), Checked("no number", float("nan"), 0.01)]
    text = markdown({}, CEILINGS, (checks, {"load": "MemoryError: full"}), [])
    assert "1 of 3 comparisons with float64 hold" in text
    assert "- wrong: error 2.00%, at most 1.00% is allowed" in text and "- no number" in text and "fine" not in text
    assert "- load: MemoryError: full" in text


def test_the_document_is_json_and_says_the_same():
    read = json.loads(json.dumps(document({"device": "H"}, CEILINGS, ([Checked("x", 0.0, 0.1)], {}), [ROW])))
    assert read["rows"][0]["share"] == 0.8 and read["checks"][0]["passed"] is True
    assert read["ceilings"]["read"] == 3e12
