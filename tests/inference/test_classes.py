"""Names of classes."""

import pathlib
import re

import pytest
import tensorflow_datasets

from xception_flax.base.errors import UserError
from xception_flax.inference.classes import imagenet_classes, readable


def test_imagenets_classes_are_in_the_order_of_its_labels():
    names = imagenet_classes()
    file = pathlib.Path(tensorflow_datasets.__file__).parent / 'datasets/imagenet2012/labels.txt'
    assert list(names) == file.read_text().split()
    assert all(re.fullmatch(r"[\w'.\-]+((,)? [\w'.\-]+)*", name) for name in names.values())
    some = {index: list(names.values())[index] for index in (0, 1, 281, 404, 999)}
    assert some == {
        0: 'tench, Tinca tinca',
        1: 'goldfish, Carassius auratus',
        281: 'tabby, tabby cat',
        404: 'airliner',
        999: 'toilet tissue, toilet paper, bathroom tissue',
    }


def test_wordnet_ids_become_words_and_other_names_stay():
    assert readable(['n02123045', 'n99999999', 'cat'], 3) == [
        'tabby, tabby cat',
        'n99999999',
        'cat',
    ]


def test_a_thousand_classes_without_known_names_are_imagenets():
    assert readable(None, 1000)[1] == 'goldfish, Carassius auratus'
    assert readable([], 1000)[1] == 'class 1'
    assert readable(None, 3) == ['class 0', 'class 1', 'class 2']


def test_another_number_of_names_than_classes_is_refused():
    with pytest.raises(UserError, match='there are 2 names for 3 classes'):
        readable(['a', 'b'], 3)
