"""Tells which texts are longer than a context, without encoding them to the end, and never of one that fits."""

from collections.abc import Iterator

from octavo.server.text.tokenizer import Tokenizer

SHORT = 64 * 1024  # characters; a shorter text is just encoded
PIECE = 32 * 1024  # characters that are encoded at once
EDGES = 256  # tokens that a piece may have because it was cut: those of two words that were one token each
OVERLAP = 4096  # characters after which the tokens of a text no longer depend on where it was cut


def exceeds(tokenizer: Tokenizer, text: str, most: int) -> bool:
    """Returns True only if the text surely has more tokens than `most`. It may be False for one that has a few more.

    Its bytes tell it where a token has a bound of bytes. Else pieces are encoded until there are too many tokens.
    """
    if len(text) <= SHORT:
        return False
    if exceeds_by_bytes(tokenizer, text, most):
        return True
    count = 0
    for piece in _pieces(text):
        count += max(len(tokenizer.encode(piece, add_special_tokens=False)) - EDGES, 0)
        if count > most:
            return True
    return False


def exceeds_by_bytes(tokenizer: Tokenizer, text: str, most: int) -> bool:
    """Returns True only if any text that contains this one surely has more tokens than `most`. It encodes nothing."""
    return len(text) > SHORT and tokenizer.bound is not None and tokenizer.bound.least_tokens(text) > most


def ending(tokenizer: Tokenizer, text: str, tokens: int) -> str:
    """Returns an end of the text that has at least so many tokens, to encode no more of it than is kept.

    It is the whole text where a token has no bound of bytes.
    """
    bound = tokenizer.bound
    if bound is None:
        return text
    size = bound.size * tokens
    while size < len(text) and bound.least_tokens(text[-size:]) < tokens:
        size *= 2  # Some of it gives no tokens.
    start = len(text) - size - OVERLAP
    return text if start <= 0 else text[_space_after(text, start) :]


def _space_after(text: str, start: int) -> int:
    """Returns where to cut: at a space, if one follows soon."""
    space = text.find(" ", start, start + OVERLAP // 2)
    return start if space < 0 else space


def _pieces(text: str) -> Iterator[str]:
    """Yields the text in pieces, cut at spaces where there are any."""
    start = 0
    while start < len(text):
        end = start + PIECE
        space = text.rfind(" ", start + PIECE // 2, end) if end < len(text) else -1
        end = space if space > 0 else end
        yield text[start:end]
        start = end
