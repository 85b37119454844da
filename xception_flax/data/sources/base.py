"""What every source gives."""

from collections.abc import Sequence
from typing import Protocol, TypedDict

import numpy as np


class Record(TypedDict):
    """One picture, as it is stored, and its class."""

    picture: bytes | np.ndarray  # an encoded file, or uint8 [H, W] or [H, W, 3]
    label: int


class Source(Protocol):
    """Random access to the records of one split."""

    @property
    def num_classes(self) -> int:
        """Number of classes in the data set."""

    @property
    def class_names(self) -> Sequence[str]:
        """A name for each class, or empty."""

    def __len__(self) -> int:
        """Number of records."""

    def __getitem__(self, index: int) -> Record:
        """The record `index`, from 0."""

    def name(self, index: int) -> str:
        """What to call the record in a message, such as its path."""
