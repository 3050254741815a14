"""Names the characters by which a byte-level vocabulary, such as GPT-2's, writes bytes."""


def _alphabet() -> dict[str, bytes]:
    """Maps each character to its byte: a printable byte has its own character, the others those from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(0x100 + index): bytes([byte]) for index, byte in enumerate(others)}


BYTE_OF = _alphabet()
