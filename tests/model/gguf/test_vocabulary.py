"""A tokenizer that is rebuilt from a file's metadata encodes rough texts as the one that the metadata were made of."""

import json
import random
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.pre_tokenizers import ByteLevel

from octavo.model.config import ModelError
from octavo.model.gguf.file import GgufModel
from octavo.model.gguf.pre_tokenizers import CUTTINGS
from octavo.model.gguf.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary
from tests.model.gguf.writing import byte_vocabulary, write

CORPUS = [
    "the theory of the other weather is that whether they gather or not, feathers are lighter than leather",
    "Words, words; WORDS! It's what we're after: don't you'd've thought so? 12345 67 8.9 1,000,000",
    "def f(x):\n    return x ** 2  # squares\n\n\nfor i in range(10):\n\tprint(f(i))\r\n",
    "Füße, naïve café, Ελληνικά, русский язык, 日本語のテキスト, 한국어, عربى, हिन्दी 🙂🙃👩‍👩‍👧",
    "camelCase HTTPServer snake_case kebab-case x=y+z; a<b>c $5 100% <=> ^~| ... ?! \"quoted\" 'single'",
]
ROUGH = [
    "",
    " ",
    "  two  spaces   and    more ",
    "\n\n\n \t \r\n  x",
    "a\u0301 e\u0308 \u1e9b\u0323 ﬁ Å",
    "\ud7ff\ue000\U0010ffff\x00\x7f\xa0\u200b\u2028",
    "<s> <|end|> [INST] </s>",
    "don'T CAN'T we'LL I'D",
    "0123456789 ١٢٣ ⅣⅤ ½",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    *CORPUS,
]
LETTERS = "".join(CORPUS) + " \n\t  aA1'☃𝕏é"

# What tokenizer.json files of released models have, written here anew.
_END = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BEGINNING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
RELEASED = {
    "llama-bpe": _BEGINNING + r"\p{N}{1,3}" + _END,
    "qwen2": _BEGINNING + r"\p{N}" + _END,
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def rough_texts(count: int = 150) -> list[str]:
    generator = random.Random(0)
    return ROUGH + ["".join(generator.choices(LETTERS, k=generator.randrange(40))) for _ in range(count)]


def rebuilt(path: Path, metadata: dict[str, Any]) -> Vocabulary:
    return Vocabulary.of(GgufModel.read(write(path / "v.gguf", "llama", metadata, {}, lambda name: "F32")))


def assert_same(ours: Tokenizer, theirs: Tokenizer, add_special_tokens: bool = True) -> None:
    for text in rough_texts():
        wanted = theirs.encode(text, add_special_tokens=add_special_tokens).ids
        found = ours.encode(text, add_special_tokens=add_special_tokens).ids
        assert found == wanted, text
        assert ours.decode(found) == theirs.decode(wanted)


def byte_level(pre: str) -> Tokenizer:
    """Trains a tokenizer as the released ones are; its special tokens stand behind the others."""
    made = Tokenizer(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    made.pre_tokenizer = released_cut(pre)
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    alphabet = ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS * 5, trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens(["<s>", "<|end|>"])
    made.add_tokens([AddedToken("<tool>", normalized=False)])
    return made


def released_cut(pre: str) -> pre_tokenizers.PreTokenizer:
    if pre == "gpt-2":
        return ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, ByteLevel(add_prefix_space=False)])
    cut = pre_tokenizers.Split(Regex(RELEASED[pre]), "isolated")
    return pre_tokenizers.Sequence([cut, ByteLevel(add_prefix_space=False, use_regex=False)])


def bytes_metadata(made: Tokenizer, pre: str) -> dict[str, Any]:
    """Returns what llama.cpp's converter writes of a tokenizer."""
    model = json.loads(made.to_str())["model"]
    added = made.get_added_tokens_decoder()
    tokens = [made.id_to_token(id) for id in range(made.get_vocab_size())]
    types = [NORMAL if id not in added else CONTROL if added[id].special else USER_DEFINED for id in range(len(tokens))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": made.token_to_id("<s>"),
        "tokenizer.ggml.eos_token_id": made.token_to_id("<|end|>"),
    }


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"])
def test_byte_level_vocabularies(tmp_path: Path, pre: str) -> None:
    theirs = byte_level(pre)
    ours = rebuilt(tmp_path, bytes_metadata(theirs, pre)).tokenizer()
    if pre == "llama-bpe":  # llama.cpp puts a BOS before Llama 3's texts unless the file forbids it.
        bos = theirs.token_to_id("<s>")
        theirs.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", bos)])
    assert_same(ours, theirs)
    assert ours.encode("a<tool><|end|>b", add_special_tokens=False).ids[1:3] == [
        theirs.token_to_id("<tool>"),
        theirs.token_to_id("<|end|>"),
    ]


@pytest.mark.parametrize("pre", CUTTINGS)
def test_cuts_lose_nothing(pre: str) -> None:
    cut = CUTTINGS[pre].pre_tokenizer()
    alphabet = {bytes([value]): key for key, value in bytes_of_alphabet().items()}
    for text in rough_texts():
        pieces = "".join(piece for piece, _ in cut.pre_tokenize_str(text))
        assert pieces == "".join(alphabet[bytes([byte])] for byte in text.encode())


def bytes_of_alphabet() -> dict[str, int]:
    """Returns the byte of each character, as GPT-2 orders them: printable ones are themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def test_the_default_cut_is_llama_cpps() -> None:
    cut = CUTTINGS["default"].pre_tokenizer()
    assert [piece for piece, _ in cut.pre_tokenize_str("it's 12345!? x")] == [
        "it",
        "'",
        "s",
        "Ġ",
        "123",
        "45",
        "!?",
        "Ġx",
    ]


def sentencepiece() -> dict[str, Any]:
    """Trains a vocabulary, and returns metadata with its scores as SentencePiece would have them."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=["<unk>"], show_progress=False, max_token_length=12)
    texts = [word for text in CORPUS * 5 for word in text.split(" ")]  # No piece of Llama's goes beyond a word.
    made.train_from_iterator(texts, trainer)
    learned = [token for token, _ in sorted(made.get_vocab().items(), key=lambda item: item[1])][1:]
    letters = [token for token in learned if len(token) == 1]
    merged = [token for token in learned if len(token) > 1]
    assert len(merged) > 100
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *merged, *letters, "<|end|>"]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(merged) + len(letters)), USER_DEFINED]
    scores = [0.0] * 259 + [-float(n) for n in range(len(merged) + len(letters))] + [0.0]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def merged_by_score(text: str, metadata: dict[str, Any]) -> list[int]:
    """Encodes as llama.cpp's SPM does: always the neighbours whose piece has the highest score, the leftmost first."""
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    normal = {token: n for n, token in enumerate(tokens) if metadata["tokenizer.ggml.token_type"][n] == NORMAL}
    symbols = list(text.replace(" ", "▁"))
    while True:
        pairs = [
            (scores[normal[a + b]], -n)
            for n, (a, b) in enumerate(zip(symbols, symbols[1:], strict=False))
            if a + b in normal
        ]
        if not pairs:
            break
        at = -max(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    ids: list[int] = []
    for symbol in symbols:
        ids += [normal[symbol]] if symbol in normal else [3 + byte for byte in symbol.encode()]
    return ids


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_vocabularies(tmp_path: Path, prefix: bool) -> None:
    metadata = sentencepiece()
    said = metadata if prefix else metadata | {"tokenizer.ggml.add_space_prefix": False}
    ours = rebuilt(tmp_path, said).tokenizer()
    for text in rough_texts():
        if "<" in text:  # Special tokens have a test of their own.
            continue
        wanted = merged_by_score(f" {text}" if prefix and text else text, metadata)
        assert ours.encode(text).ids == [1, *wanted], text
        assert ours.decode(wanted) == text


def test_special_tokens_of_sentencepiece(tmp_path: Path) -> None:
    metadata = sentencepiece()
    ours = rebuilt(tmp_path, metadata | {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True})
    made = ours.tokenizer()
    end = len(ours.tokens) - 1
    ids = made.encode("the</s>the<|end|>").ids
    assert ids == [*merged_by_score(" the", metadata), 2, *merged_by_score(" the", metadata), end, 2]
    assert ours.named() == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize("bos", ["a:b", "$A", "a:1", "EOS"])
def test_a_bos_may_be_any_text(tmp_path: Path, bos: str) -> None:
    """A template of the tokenizers' own form reads some of these as something else."""
    said = byte_vocabulary()
    said["tokenizer.ggml.tokens"][1] = bos
    made = rebuilt(tmp_path, said | {"tokenizer.ggml.add_eos_token": True}).tokenizer()
    assert made.encode("x").tokens == [bos, "x", "</s>"]


def test_ends_of_answers(tmp_path: Path) -> None:
    said = byte_vocabulary()
    tokens = [*said["tokenizer.ggml.tokens"], "<|im_end|>", "<|eot_id|>", "<|endoftext|>"]
    types = [*said["tokenizer.ggml.token_type"], CONTROL, CONTROL, NORMAL]
    said |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    last = len(tokens) - 1
    assert rebuilt(tmp_path, said).ends() == [2, last - 1, last - 2]
    assert rebuilt(tmp_path, said | {"tokenizer.ggml.eot_token_id": last}).ends() == [2, last, last - 1, last - 2]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"model": "bert"}, "is of the kind 'bert'; give the model's own tokenizer with --tokenizer"),
        ({"model": None}, "tokenizer.ggml.model is missing"),
        ({"pre": "chameleon"}, "pre is 'chameleon', which is unknown here; give the model's own tokenizer"),
        ({"pre": None}, "tokenizer.ggml.pre is missing; give the model's own tokenizer with --tokenizer"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokens": [1, 2]}, "tokenizer.ggml.tokens is [1, 2], not a list of str"),
        ({"tokens": ["a", "b", "a"], "token_type": [1, 1, 1]}, "the token 'a' is there twice"),
        ({"token_type": [1]}, "types of tokens"),
        ({"merges": ["a b c"]}, "the merge 'a b c' is not one of two tokens"),
        ({"merges": ["a c"]}, "the merge 'a c' is not one of two tokens"),
        ({"bos_token_id": 9999}, "bos_token_id is 9999, and there are 260 tokens"),
        ({"tokens": ["<unk>", "<s>", "</s>", "x"], "token_type": [3, 3, 3, 1]}, "lacks 255 of 256 bytes"),
        ({"model": "llama"}, "tokenizer.ggml.scores is missing"),
        ({"model": "llama", "scores": [1.0]}, "260 tokens and 1 scores"),
        ({"model": "llama", "precompiled_charsmap": [1]}, "precompiled_charsmap is set"),
        (
            {"model": "llama", "tokens": ["<unk>", "a" * 10**6], "token_type": [2, 1], "scores": [0.0, 0.0]}
            | {"bos_token_id": 0, "eos_token_id": 0},
            "has 1000000 letters: give the model's own tokenizer",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, said: dict[str, Any], sentence: str) -> None:
    metadata = byte_vocabulary() | {f"tokenizer.ggml.{key}": value for key, value in said.items()}
    with pytest.raises(ModelError) as caught:
        rebuilt(tmp_path, metadata).tokenizer()
    assert sentence in str(caught.value)


def test_types_of_tokens_are_ggufs() -> None:
    ours = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE)
    theirs = gguf.TokenType
    assert ours == (theirs.NORMAL, theirs.UNKNOWN, theirs.CONTROL, theirs.USER_DEFINED, theirs.BYTE)
