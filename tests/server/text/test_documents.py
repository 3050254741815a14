"""Text is read from files, folders and lines of JSON, and what cannot be read is told by name."""

from pathlib import Path

import pytest

from octavo.server.http.errors import StartupError
from octavo.server.text import documents
from octavo.server.text.documents import Text, read


def texts(*paths: Path, seed: int = 0) -> set[str]:
    return {each.text for each in read("law", paths, seed).texts}


def test_blank_lines_separate_the_documents_of_a_few_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n   \nthree\r\n\r\n\n")
    assert texts(tmp_path / "a.txt") == {"one\ntwo", "three"}


def test_each_of_many_files_is_a_document(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for number in range(12):
        (folder / "deep" / f"{number}.txt").write_text(f"\nfirst {number}\n\nsecond\n")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    (folder / "empty").write_text(" \n")
    assert texts(folder) == {f"first {number}\n\nsecond" for number in range(12)}
    assert texts(folder, folder / "deep" / "3.txt") == texts(folder), "a file that is named twice is read once"


def test_the_order_is_that_of_the_seed(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    orders = [[each.text for each in read("law", [tmp_path], seed).texts] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and set(orders[0]) == set(orders[2])


def test_lines_of_json_have_answers(tmp_path: Path) -> None:
    lines = ['{"prompt": "2+2?", "answer": "4"}', "", '{"text": "plain\\n\\ntext", "source": 1}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert read("law", [tmp_path], 0).texts == (Text("4", "2+2?"), Text("plain\n\ntext"))


@pytest.mark.parametrize("line", ["{", "[]", '{"prompt": "x"}', '{"text": 1}'])
def test_other_lines_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + line)
    with pytest.raises(StartupError, match=r"Line 2 of .*a\.jsonl is no object with"):
        read("law", [tmp_path], 0)


def test_files_that_are_no_text_are_passed_over_unless_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\xff")
    assert read("law", [tmp_path], 0).passed_over == 1
    with pytest.raises(StartupError, match=r"b\.png of the domain law is not UTF-8 text"):
        read("law", [tmp_path, tmp_path / "b.png"], 0)


def test_a_domain_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(StartupError, match="The domain law has no text in"):
        read("law", [tmp_path], 0)
    with pytest.raises(StartupError, match="There is no file or folder"):
        read("law", [tmp_path / "absent"], 0)


def test_endless_text_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_BYTES", 50)
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"{number:10}")
    found = read("law", [tmp_path], 0)
    assert found.cut_off and len(found.texts) == 6
