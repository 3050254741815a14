"""Tells how much of a text must be held back because a marker may begin there."""


def overlap(text: str, marker: str) -> int:
    """Returns the number of characters at the end of the text that may begin the marker, but are not all of it."""
    longest = min(len(text), len(marker) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(marker[:length])), 0)
