"""The allowed word that a misspelt one most likely means, for messages."""

from collections.abc import Iterable


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

    lower = {other.lower(): other for other in allowed}
    match = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=cutoff)
    return lower[match[0]] if match else ""
