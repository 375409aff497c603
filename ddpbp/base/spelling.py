"""Words in messages: the allowed one that is probably meant; texts of others, fit to print."""

from collections.abc import Iterable

LONGEST_WORD = 100
"""Characters of a word for which a similar one is searched."""


def nearest(word: str, allowed: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the allowed word most like this one, whatever its case; "" if none is.

    Parameters
    ----------
    word : str
    allowed : iterable of str
    cutoff : float
        The likeness that counts, from 0 (any word) to 1 (the same word).
    """
    import difflib

    if len(word) > LONGEST_WORD:
        return ""
    lower = {other.lower(): other for other in allowed}
    match = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=cutoff)
    return lower[match[0]] if match else ""


def printable(text: str) -> str:
    """Return a text with an escape for each character that does not print: it may be a file's."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: object, most: int = 200) -> str:
    """Return `repr` for a message: not longer than `most` characters, whatever the value is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits or levels than Python prints
        text = f"a very large {type(value).__name__}"
    return shortened(text, most)


def shortened(text: str, most: int = 200) -> str:
    """Return a text, or its beginning if it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
