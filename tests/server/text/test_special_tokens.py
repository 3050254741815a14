"""Tokens that only the files beside tokenizer.json name have the ids that transformers gives them, or are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.server.http.errors import StartupError
from octavo.server.text.special_tokens import SpecialTokens
from octavo.server.text.template import ChatTemplate
from octavo.server.text.tokenizer import Tokenizer
from tests.server.vocab import byte_level, llama_style

STYLES = {"byte-level": (byte_level, 259), "Llama-style": (llama_style, 270)}  # a tokenizer, and its next free id
TEXTS = (
    "<|im_start|>user\na<|im_end|>",
    "a <|im_end|> b",
    "<|im_end|><|im_end|>",
    "<|IM_END|> <s>hé你</s><|im_start|>",
    "<pad> <tool><extra>x<think> ",
    " <|im_end|>  a<|im_end",
)


def token(content: str, special: bool = True, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {"content": content, "special": special} | plain | flags


def write(directory: Path, style: str, **files: dict[str, Any]) -> Path:
    """Writes a tokenizer, and files by their names without .json."""
    STYLES[style][0]().backend.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | files.pop("tokenizer_config", {})
    for name, values in (files | {"tokenizer_config": config}).items():
        (directory / f"{name}.json").write_text(json.dumps(values))
    return directory


CHATML = {"0": token("<|im_end|>"), "1": token("<|im_start|>")}  # ids count from the next free one here

CASES: dict[str, dict[str, dict[str, Any]]] = {
    "nothing": {},
    "decoder": {"tokenizer_config": {"eos_token": "<|im_end|>", "added_tokens_decoder": CHATML}},
    "decoder in another order": {"tokenizer_config": {"added_tokens_decoder": dict(reversed(CHATML.items()))}},
    "not special": {"tokenizer_config": {"added_tokens_decoder": {"0": token("<think>", special=False)}}},
    "special by its name": {
        "tokenizer_config": {"eos_token": "<|im_end|>", "added_tokens_decoder": {"0": token("<|im_end|>", False)}}
    },
    "stripping": {
        "tokenizer_config": {"added_tokens_decoder": {"0": token("<|im_end|>", lstrip=True, rstrip=True)}},
    },
    "named alone": {"tokenizer_config": {"eos_token": "<|im_end|>", "bos_token": "<s>", "pad_token": "<pad>"}},
    "other flags for what is there": {"tokenizer_config": {"added_tokens_decoder": {"=2": token("</s>", rstrip=True)}}},
    "map of strings": {"special_tokens_map": {"eos_token": "<|im_end|>", "bos_token": "<s>"}},
    "map of objects": {"special_tokens_map": {"eos_token": token("<|im_end|>", rstrip=True), "bos_token": "<s>"}},
    "map over config": {
        "tokenizer_config": {"eos_token": "</s>"},
        "special_tokens_map": {"eos_token": "<|im_end|>", "pad_token": None},
    },
    "map beside a decoder": {
        "tokenizer_config": {"added_tokens_decoder": CHATML},
        "special_tokens_map": {"pad_token": "<pad>", "eos_token": "<|im_end|>"},
    },
    "added_tokens.json": {"added_tokens": {"<|im_end|>": 0, "<|im_start|>": 1}},
    "added_tokens.json with names": {
        "added_tokens": {"<|im_start|>": 1, "<|im_end|>": 0, "<think>": 2},
        "special_tokens_map": {"eos_token": "<|im_end|>", "extra_special_tokens": ["<|im_start|>"]},
    },
    "extra": {"tokenizer_config": {"extra_special_tokens": ["<extra>", "<|im_end|>"]}},
    "additional": {"tokenizer_config": {"additional_special_tokens": ["<extra>", "</s>"]}},
    "extra by name": {"tokenizer_config": {"extra_special_tokens": {"tool_token": "<tool>"}, "image_token": "<extra>"}},
    "in the vocabulary": {"tokenizer_config": {"extra_special_tokens": ["a", "b"], "eos_token": "b"}},
}


def numbered(files: dict[str, dict[str, Any]], first: int) -> dict[str, dict[str, Any]]:
    """Returns the files with ids that count from `first`; "=2" is 2 itself."""
    files = {name: dict(values) for name, values in files.items()}
    config = files.get("tokenizer_config", {})
    if "added_tokens_decoder" in config:
        decoder = config["added_tokens_decoder"].items()
        numbers = {id: int(id[1:]) if id.startswith("=") else int(id) + first for id, _ in decoder}
        config["added_tokens_decoder"] = {str(numbers[id]): entry for id, entry in decoder}
    if "added_tokens" in files:
        files["added_tokens"] = {content: id + first for content, id in files["added_tokens"].items()}
    return files


@pytest.mark.oracle
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("case", CASES)
def test_ids_are_those_of_transformers(tmp_path: Path, style: str, case: str) -> None:
    from transformers import AutoTokenizer

    write(tmp_path, style, **numbered(CASES[case], STYLES[style][1]))
    ours, theirs = Tokenizer.from_directory(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        for special in (False, True):
            expected = theirs(text, add_special_tokens=special)["input_ids"]
            assert list(ours.encode(text, special)) == expected, text
            assert ours.backend.decode(expected) == theirs.decode(expected, skip_special_tokens=True), text
    assert ours.vocab_size == len(theirs)
    assert dict(SpecialTokens.from_directory(tmp_path).texts) == theirs.special_tokens_map


def test_a_token_beside_tokenizer_json_is_one_token(tmp_path: Path) -> None:
    decoder = {"270": token("<|im_end|>"), "271": token("<|im_start|>")}
    write(tmp_path, "Llama-style", tokenizer_config={"added_tokens_decoder": decoder})
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.encode("<|im_start|>a<|im_end|>", add_special_tokens=False)[::2] == (271, 270)
    assert tokenizer.vocab_size == 272
    assert tokenizer.added_ids(["<|im_end|>"]) == {"<|im_end|>": 270}


def test_templates_have_the_special_tokens_of_either_file(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    write(
        tmp_path,
        "byte-level",
        tokenizer_config={"chat_template": template},
        special_tokens_map={"bos_token": token("<s>"), "eos_token": "</s>"},
    )
    found = ChatTemplate.from_directory(tmp_path)
    assert found is not None
    assert str(found.render([{"role": "user", "content": "a"}])) == "<s>[user]a</s>"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer_config": {"added_tokens_decoder": {"300": token("<x>")}}}, "'<x>' should have the id 300"),
        ({"tokenizer_config": {"added_tokens_decoder": {"2": token("<x>")}}}, "'<x>' should have the id 2"),
        ({"tokenizer_config": {"added_tokens_decoder": {"9": token("</s>")}}}, "'</s>' should have the id 9"),
        ({"tokenizer_config": {"added_tokens_decoder": {"9" * 30: token("<x>")}}}, "which is no token id"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": token("<x>")}}}, "'x', which is no token id"),
        ({"tokenizer_config": {"added_tokens_decoder": {"259": "<x>"}}}, "no object of tokens by their ids"),
        ({"tokenizer_config": {"added_tokens_decoder": []}}, "no object of tokens by their ids"),
        ({"tokenizer_config": {"added_tokens_decoder": {"259": {}}}}, "which is no token"),
        ({"tokenizer_config": {"added_tokens_decoder": {"259": {"content": "x", "lstrip": 1}}}}, "which is no token"),
        ({"tokenizer_config": {"eos_token": 2}}, "tokenizer_config.json, 'eos_token' is 2, which is no token"),
        ({"tokenizer_config": {"eos_token": {"id": 2}}}, "which is no token"),
        ({"tokenizer_config": {"eos_token": "\ud800"}}, "which is no text"),
        ({"tokenizer_config": {"extra_special_tokens": 5}}, "neither a list nor an object"),
        ({"tokenizer_config": {"extra_special_tokens": [5]}}, "'extra_special_tokens' is 5, which is no token"),
        ({"special_tokens_map": {"bos_token": ["<s>"]}}, "special_tokens_map.json, 'bos_token' is ['<s>']"),
        (
            {"tokenizer_config": {"bos_token": ["<s>"]}, "special_tokens_map": {"eos_token": "</s>"}},
            "tokenizer_config.json, 'bos_token' is ['<s>']",
        ),
        ({"special_tokens_map": {"additional_special_tokens": "<x>"}}, "special_tokens_map.json, additional_special"),
        ({"added_tokens": {"<x>": "259"}}, "added_tokens.json gives '<x>' no token id"),
        ({"added_tokens": {"<x>": 2}}, "'<x>' should have the id 2"),
    ],
)
def test_what_contradicts_or_is_no_token_is_refused_by_name(
    tmp_path: Path, files: dict[str, dict[str, Any]], words: str
) -> None:
    if files.get("special_tokens_map") is None and "tokenizer_config" in files:
        files["tokenizer_config"].setdefault("added_tokens_decoder", {})
    with pytest.raises(StartupError) as caught:
        Tokenizer.from_directory(write(tmp_path, "byte-level", **files))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_id_that_another_token_has_is_never_given_away(tmp_path: Path) -> None:
    """A vocabulary with a gap has fewer tokens than ids, and tokenizers counts the tokens."""
    write(tmp_path, "byte-level", tokenizer_config={"pad_token": "<pad>"})
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["Ā"], vocabulary["gap"] = 400, 258
    last = max(vocabulary, key=lambda content: vocabulary[content] if vocabulary[content] < 259 else -1)
    vocabulary[last] = len(vocabulary)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(StartupError, match=r"'<pad>' takes the id of another token"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b"\xef\xbb\xbf{}"), "begins with a byte order mark"),
        (lambda path: path.write_bytes(b"\xff"), "is not UTF-8 text"),
        (lambda path: path.write_bytes(b""), "is not valid JSON"),
        (lambda path: path.write_bytes(b"[]"), "does not hold a JSON object"),
        (lambda path: path.write_bytes(100_000 * b'{"a":'), "is nested too deeply"),
        (lambda path: path.write_bytes(b'{"a": ' + 10_000 * b"9" + b"}"), "thousands of digits"),
        (lambda path: path.mkdir(), "cannot be read (Is a directory)"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read (No such file or directory)"),
    ],
)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_a_broken_file_is_named(tmp_path: Path, name: str, make: Callable[[Path], object], words: str) -> None:
    write(tmp_path, "byte-level")
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(StartupError) as caught:
        Tokenizer.from_directory(tmp_path)
    assert name in str(caught.value) and words in str(caught.value)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as a user who may read everything."""
    write(tmp_path, "byte-level")

    def refuse(path: Path, *arguments: Any) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(StartupError, match=r"tokenizer_config\.json cannot be read \(Permission denied\)"):
        Tokenizer.from_directory(tmp_path)
