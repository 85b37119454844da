"""What `check` says of a data set."""

import numpy as np
import pytest
from helpers import small_config
from PIL import Image

from xception_flax.data import sources
from xception_flax.data.survey import Survey, look


@pytest.fixture
def surveys(tmp_path):
    """Surveys of two splits with copies in and between them, and a damaged file."""
    for split, sizes in (('train', [(40, 30), (50, 12), (60, 60)]), ('val', [(20, 20)])):
        for name in ('cat', 'dog'):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number, size in enumerate(sizes):
                Image.new('RGB', size, (number, len(name), len(split) * 7)).save(
                    folder / f'{number}.png'
                )
    train, val = tmp_path / 'train', tmp_path / 'val'
    Image.new('RGB', (9, 9), (200, 0, 0)).save(train / 'cat' / '3.png')
    (train / 'dog' / 'copy.png').write_bytes((train / 'cat' / '0.png').read_bytes())
    (val / 'dog' / 'x.png').write_bytes((train / 'cat' / '2.png').read_bytes())
    (val / 'dog' / 'z.png').write_bytes(b'no image')
    c = small_config(image_size=30, crop_fraction=0.5)
    c.dataset.source, c.dataset.data_dir = 'folder', str(tmp_path)
    found = []
    for split in ('train', 'val'):
        source = sources.load(c, split)
        found.append(Survey(split, source))
        for seen in look(source, c):
            found[-1].add(seen)
    return found, c, tmp_path


def test_classes_sizes_and_copies_are_counted(surveys):
    (train, val), c, folder = surveys
    # cat and dog have colours alike, as their names are of one length.
    assert train.lines(c) == [
        'train: 8 images, 0 unreadable',
        "  2 classes, of 4 ('cat') to 4 images ('cat')",
        '  9 to 60 pixels high, 9 to 60 wide',
        f'  the smallest, {folder}/train/cat/3.png, has 9 x 9 pixels; evaluation enlarges it 6.7 '
        'times',
        f'  4 are there twice, such as {folder}/train/dog/0.png ({folder}/train/cat/0.png)',
    ]
    assert val.lines(c)[:2] == [
        'val: 4 images, 1 unreadable',
        "  2 classes, of 1 ('cat') to 2 images ('dog')",
    ]


def test_copies_in_both_splits_are_named(surveys):
    (train, val), _, folder = surveys
    assert val.shared(train) == [
        f'1 images of val are in train, too, such as {folder}/val/dog/x.png '
        f'({folder}/train/cat/2.png)'
    ]
    assert train.unreadable == 0
    assert val.unreadable == 1


def test_images_in_memory_and_several_classes_are_counted_too():
    class Several:
        num_classes, class_names = 3, ()

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {'image': np.full((4, 5), index, np.uint8), 'label': np.array([index, 1, 0])}

        def name(self, index):
            return f'several[{index}]'

    c = small_config(image_size=2)
    survey = Survey('all', Several())
    for seen in look(Several(), c):
        survey.add(seen)
    assert survey.lines(c) == [
        'all: 2 images, 0 unreadable',
        '  3 classes, of 0 (class 2) to 2 images (class 1)',
        '  4 to 4 pixels high, 5 to 5 wide',
    ]
