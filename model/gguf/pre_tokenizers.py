"""Lists how byte-level vocabularies cut text into words before they merge, by the names that GGUF files have for it.

The patterns are those of the tokenizer.json files of the models that the names stand for. llama.cpp lists the names
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp).
"""

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

_ENDINGS = r"'s|'t|'re|'ve|'m|'ll|'d"
_GPT2 = rf"{_ENDINGS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = rf"(?i:{_ENDINGS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"


@dataclass(frozen=True, slots=True)
class Cutting:
    """A Cutting says how text is cut into words: by one pattern after the other."""

    patterns: tuple[str, ...]
    whole_words: bool = False  # A word that is a token becomes it, whatever the merges say.
    composed: bool = False  # Text is brought into Unicode's form NFC first.
    begins: bool = False  # A text gets a BOS unless the metadata say otherwise.

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.composed else None

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_LLAMA3 = Cutting((rf"{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_REST}",), whole_words=True, begins=True)
_QWEN2 = Cutting((rf"{_WORDS}|\p{{N}}|{_SIGNS}|{_REST}",), composed=True)

CUTTINGS = {
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": Cutting((rf"{_CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}",), whole_words=True),
    "gpt-2": Cutting((_GPT2,)),
    "smollm": Cutting((r"\p{N}", _GPT2)),
    "default": Cutting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
