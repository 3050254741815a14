"""Makes two tokenizers small enough to read: one of bytes, like GPT-2's, and one with byte fallback, like Llama's."""

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel

from octavo.server.text.template import ChatTemplate
from octavo.server.text.tokenizer import Tokenizer

BOS, EOS, BYTES = 1, 2, 3  # ids: <s>, </s>, and the first of 256 bytes
CHATML = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ("<unk>", "<s>", "</s>")
PIECES = ("▁", "▁Hello", "▁world", "a", "b", "é", "你", "#", "##", "▁a", "Hello")


def byte_level(template: str | None = CHATML) -> Tokenizer:
    """Makes a tokenizer whose ids 3 to 258 are the bytes, without merges. Every text begins with BOS."""
    vocabulary = {token: id for id, token in enumerate((*SPECIAL, *_by_byte()))}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _finished(backend, template)


def llama_style() -> Tokenizer:
    """Makes a tokenizer whose ids 3 to 258 are byte-fallback tokens, before PIECES; a leading space is stripped."""
    byte_tokens = (f"<0x{byte:02X}>" for byte in range(256))
    vocabulary = {token: id for id, token in enumerate((*SPECIAL, *byte_tokens, *PIECES))}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finished(backend, CHATML)


def piece(text: str) -> int:
    """Returns the id of one of PIECES in the Llama-style vocabulary."""
    return BYTES + 256 + PIECES.index(text)


def ids_of(text: str) -> list[int]:
    """Returns the ids of a text in the byte-level vocabulary, without BOS."""
    return [BYTES + byte for byte in text.encode()]


def _by_byte() -> list[str]:
    """Returns the character of each byte, in the order of the bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    characters = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    assert set(characters) == set(ByteLevel.alphabet())
    return characters


def _finished(backend: Backend, template: str | None) -> Tokenizer:
    backend.add_special_tokens(list(SPECIAL))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return Tokenizer(backend, None if template is None else ChatTemplate(template, {"bos_token": "<s>"}))
