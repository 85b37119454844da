"""Errors that the user can fix, reported in one line."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """States what is wrong, where, and what to do; programs print it without a traceback.

    Whatever a damaged file has put into the message, a terminal can print it.
    """

    def __init__(self, message: str):
        super().__init__('\n'.join(printable(line) for line in message.split('\n')))


def printable(text: str) -> str:
    """The text on one line, with escapes for what cannot be printed."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error about the unknown `word`: the nearest known word, or all of them."""
    known = list(known)
    matches = difflib.get_close_matches(word, known, n=1)
    return f'; did you mean {matches[0]!r}?' if matches else f'; choose from {sorted(known)}'
