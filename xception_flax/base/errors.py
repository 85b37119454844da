"""Errors that the user can fix, reported in one line."""

import difflib
import re
from collections.abc import Iterable

# What to do, by words in what the library of a bucket says.
REMEDIES = {
    'credentials anonymous unauthorized': 'gcloud auth application-default login gives credentials',
    'quota': 'free some storage, or raise the quota',
    'forbidden permission': 'the account needs the role Storage Object User on the bucket',
    'notfound': 'is there such a bucket?',
}


class UserError(ValueError):
    """States what is wrong, where, and what to do; programs print it without a traceback.

    Whatever a damaged file has put into the message, a terminal can print it.
    """

    def __init__(self, message: str):
        super().__init__('\n'.join(printable(line) for line in message.split('\n')))


class BucketError(OSError):
    """What the library of a bucket reports, in one line."""


def printable(text: str) -> str:
    """The text on one line, with escapes for what cannot be printed."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error about the unknown `word`: the nearest known word, or all of them."""
    known = list(known)
    matches = difflib.get_close_matches(word, known, n=1)
    return f'; did you mean {matches[0]!r}?' if matches else f'; choose from {sorted(known)}'


def described(error: Exception) -> str:
    """What a bucket's library says, in one line, and what to do about it."""
    if isinstance(error, BucketError):
        return str(error)
    text = ' '.join(re.sub(r'https?://\S+', '', str(error)).split())
    if said := re.search(r'"message\\*": ?\\*"([^"\\]+)', text):
        text = said[1]
    text = text[:200] or type(error).__name__
    lower = f'{type(error).__name__} {text}'.lower()
    for words, remedy in REMEDIES.items():
        if any(word in lower for word in words.split()):
            return f'{text} ({remedy})'
    return text
