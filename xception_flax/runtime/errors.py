"""Mistakes that the user can mend, told in one line."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Says what is wrong, where, and what to do; programs print it without a traceback."""


def nearest(word: str, known: Iterable[str]) -> str:
    """What to append to "there is no `word`": the nearest of the known words, or all of them."""
    known = list(known)
    matches = difflib.get_close_matches(word, known, n=1)
    return f'; did you mean {matches[0]!r}?' if matches else f'; choose from {sorted(known)}'
