import numpy as np
import pytest

from xception_flax.base.errors import UserError
from xception_flax.data.sources.arrays import ArraySource
from xception_flax.data.sources.exclusion import exclude


class NamedSource(ArraySource):
    """Images that have names, as those of TFDS and of folders."""

    def __init__(self, names):
        images = np.arange(len(names), dtype=np.uint8)[:, None, None]
        super().__init__('some', images, np.arange(len(names)), ['class'] * len(names))
        self.names = names

    def name(self, index):
        return self.names[index]


IMAGENET = NamedSource(
    [f'i/val[{i}] ILSVRC2012_val_{n:08d}.JPEG' for i, n in enumerate([3, 1, 36])]
)
FOLDER = NamedSource(['/data/val/cat/1.jpg', '/data/val/dog/1.jpg', '/data/val/dog/x2.PNG'])
ARRAY = ArraySource('digits/test', np.zeros((3, 8, 8), np.uint8), np.arange(3), ['a', 'b', 'c'])


@pytest.mark.parametrize(
    ('source', 'text', 'left', 'unmatched'),
    [
        (IMAGENET, '36\n3\n', [1], []),
        (IMAGENET, 'ILSVRC2012_val_00000001.JPEG\n00000036\n', [0], []),
        (IMAGENET, '2012\n0\n', [0, 1, 2], ['2012', '0']),
        (IMAGENET, ' 3 \r\n\n7\n', [1, 2], ['7']),
        (FOLDER, 'dog/1.jpg\n', [0, 2], []),
        (FOLDER, '1.jpg\ncat\n', [2], ['cat']),
        (FOLDER, '/data/val/cat/1.jpg\n2\n', [1], []),
        (ARRAY, '0\n2\n3\n', [1], ['3']),
    ],
)
def test_names_and_numbers_are_left_out(tmp_path, source, text, left, unmatched):
    (tmp_path / 'list.txt').write_text(text)
    remaining, lines = exclude(source, tmp_path / 'list.txt', 2)
    assert [remaining[i]['label'] for i in range(len(remaining))] == left
    assert [remaining.name(i) for i in range(len(remaining))] == [source.name(i) for i in left]
    assert lines == unmatched
    assert remaining.num_classes == source.num_classes


def test_a_list_that_is_missing_or_leaves_nothing_is_an_error(tmp_path):
    with pytest.raises(UserError, match='cannot be read'):
        exclude(ARRAY, tmp_path / 'none.txt', 2)
    (tmp_path / 'all.txt').write_text('0\n1\n2\n')
    with pytest.raises(UserError, match='leaves none of the 3 images'):
        exclude(ARRAY, tmp_path / 'all.txt', 2)
