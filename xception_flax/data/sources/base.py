"""The interface of a source."""

from collections.abc import Sequence
from typing import Protocol, TypedDict

import numpy as np

from xception_flax.base.errors import UserError


class Record(TypedDict):
    """One image, as it is stored, and its class or classes."""

    image: bytes | np.ndarray  # an encoded file, or uint8 [H, W] or [H, W, 3]
    label: int | np.ndarray  # a class, or for multi-label images [C] of 0 and 1


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
        """Name of the record in messages, such as its path."""


def check_label(source: Source, index: int, record: Record) -> None:
    """Checks that a label is a class of the source.

    Raises:
      UserError: it is not; the message names the record.
    """
    label, classes = np.asarray(record['label']), source.num_classes
    fits = 0 <= label < classes if label.ndim == 0 else label.shape == (classes,)
    if not fits:
        raise UserError(
            f'{source.name(index)} has the label {record["label"]}, but there are {classes} classes'
        )
