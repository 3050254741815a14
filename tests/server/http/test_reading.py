"""JSON from outside has no lone surrogates, no number beyond any double, and no nesting too deep to follow."""

from typing import Any

import pytest

from octavo.server.http.reading import read_json
from tests.server.client import Client


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'"\ud83d"', "�"),
        (r'"\uDE00"', "�"),
        (r'"a\ud83dbc"', "a�bc"),
        (r'"\ud83d\ud83d\ude00\ude00"', "�😀�"),
        (r'"\ud83d\n\ude00"', "�\n�"),
        (r'"\ud83d\u0061"', "�a"),
        (r'"\ud83d\\ude00"', r"�\ude00"),
        (r'"\\ud83d"', r"\ud83d"),
        (r'"\\ud83d\ude00"', r"\ud83d�"),
        (r'"\\\ud83d\\\\\ude00"', r"\�\\�"),
        (r'"\\ud83d\\ud83d\ud83d"', r"\ud83d\ud83d�"),
        (r'"\ud83d\ude00"', "😀"),
        (r'{"\ud83d": ["\ud83d"]}', {"�": ["�"]}),
        ('"\ud83d"', "�"),
    ],
)
def test_a_lone_surrogate_becomes_the_replacement_character(text: str, value: Any) -> None:
    assert read_json(text) == value


@pytest.mark.parametrize(
    "text",
    ["NaN", "[-Infinity]", "1e309", "-1E+400", "9" * 309, "9" * 10_000, '{"a": [1, {"b": 1e999}]}', f"1{'0' * 250}e99"],
)
def test_a_number_that_no_double_is_near_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"range|expected|invalid"):
        read_json(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9" * 308, int("9" * 308)),
        ("1.7976931348623157e308", 1.7976931348623157e308),
        ("1e-999", 0.0),
        ("0." + "3" * 10_000, 1 / 3),
        ('"NaN Infinity 1e999 ' + "9" * 10_000 + '"', "NaN Infinity 1e999 " + "9" * 10_000),
    ],
)
def test_any_other_is_read_and_strings_may_hold_what_they_like(text: str, value: object) -> None:
    assert read_json(text) == value


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ValueError, match="recursion"):
        read_json("[" * 100_000 + "]" * 100_000)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ("{}".encode("utf-16"), "UTF-16"),
        ("{}".encode("utf-16-be"), "UTF-16"),
        ("{}".encode("utf-32"), "UTF-32"),
        ("{}".encode("utf-32-le"), "UTF-32"),
    ],
)
def test_a_body_that_is_not_utf_8_is_told_so(body: bytes, named: str) -> None:
    reply = Client().post("/v1/completions", body)
    assert reply.status == 400
    assert named in reply.error["message"]


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf8"', "us-ascii"])
def test_utf_8_by_any_name(charset: str) -> None:
    assert (
        Client().post("/tokenize", {"prompt": "é"}, content_type=f"application/json; charset={charset}").status == 200
    )


@pytest.mark.parametrize("charset", ["utf-16", "latin-1", "shift_jis"])
def test_another_charset_is_named(charset: str) -> None:
    reply = Client().post("/tokenize", {"prompt": "é"}, content_type=f"application/json;charset={charset}")
    assert reply.status == 400
    assert charset in reply.error["message"]
