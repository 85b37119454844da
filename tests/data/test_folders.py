"""Images as they lie in people's folders."""

import os

import numpy as np
import pytest
from helpers import small_config
from PIL import Image

from xception_flax.base.errors import UserError
from xception_flax.data import class_weights, decoding, sources


def write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 6), (value, 0, 0)).save(path)


def load(path, split='train', loss='softmax', **dataset):
    c = small_config(loss=loss)
    c.dataset.update({'source': 'folder', 'data_dir': str(path), 'eval_split': 'val', **dataset})
    return sources.load(c, split)


def test_all_formats_at_any_depth_are_read_and_the_rest_is_counted(tmp_path, caplog):
    endings = ('jpg', 'JPEG', 'png', 'webp', 'bmp', 'gif', 'tif', 'tiff', 'jfif')
    for number, ending in enumerate(endings):
        for name in ('a', 'b'):
            path = tmp_path / 'train' / name / f'{number}.{ending}'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (8, 6)).save(path, {'jfif': 'JPEG'}.get(ending))
    write(tmp_path / 'train' / 'b' / 'deep' / 'deeper' / '1.png', 7)
    for name in ('._1.jpg', 'Thumbs.db', '.DS_Store', 'notes.txt'):
        (tmp_path / 'train' / 'a' / name).write_bytes(b'no image')
    for name in ('.hidden', '__MACOSX', '@eaDir'):
        write(tmp_path / 'train' / name / '1.png')
        write(tmp_path / 'train' / 'b' / name / '1.png')
    source = load(tmp_path)
    assert source.class_names == ['a', 'b']
    found = [source.name(i).removeprefix(f'{tmp_path}/train/') for i in range(len(source))]
    assert sum(name.startswith('a/') for name in found) == 9
    assert 'b/deep/deeper/1.png' in found
    assert not any('.hidden' in name or '._' in name or '@' in name for name in found)
    image = decoding.decode(source[found.index('b/deep/deeper/1.png')]['image'])
    assert image[0, 0].tolist() == [7, 0, 0]
    (line,) = [record.getMessage() for record in caplog.records]
    assert '4 files are left out' in line


def test_names_that_are_no_utf_8_are_shown_with_a_mark(tmp_path):
    bad = os.fsdecode(b'caf\xe9')
    write(tmp_path / 'train' / bad / 'x.png', 3)
    write(tmp_path / 'train' / 'tea' / f'{bad}.png')
    source = load(tmp_path)
    assert source.class_names == ['caf\N{REPLACEMENT CHARACTER}', 'tea']
    assert decoding.decode(source[0]['image'])[0, 0, 0] == 3
    assert source.name(1).endswith('tea/caf\N{REPLACEMENT CHARACTER}.png')


def test_links_between_folders_do_not_lead_in_circles(tmp_path):
    write(tmp_path / 'elsewhere' / '1.png')
    write(tmp_path / 'train' / 'a' / '1.png')
    (tmp_path / 'train' / 'a' / 'loop').symlink_to(tmp_path / 'train' / 'a')
    (tmp_path / 'train' / 'b').symlink_to(tmp_path / 'elsewhere')  # a class may be a link
    assert [load(tmp_path).files[i] for i in range(2)] == ['a/1.png', 'b/1.png']


@pytest.fixture
def classes(tmp_path):
    """Folders of classes, but none of splits."""
    for name in ('cat', 'dog'):
        for number in range(100):
            write(tmp_path / name / f'{number}.png')
    return tmp_path


def test_a_fraction_is_set_apart_by_a_hash_that_never_changes(classes):
    train, val = (load(classes, split, eval_fraction=0.2) for split in ('train', 'val'))
    assert sorted(train.files + val.files) == sorted(
        f'{name}/{number}.png' for name in ('cat', 'dog') for number in range(100)
    )
    assert 25 <= len(val) <= 55  # 40 with a deviation of 5.7
    assert train.class_names == val.class_names == ['cat', 'dog']
    # Computed by `printf %s cat/0.png | sha256sum`, as a fraction of 16^12.
    assert [name in val.files for name in ('cat/0.png', 'cat/1.png')] == [
        int(digest, 16) / 16**12 < 0.2 for digest in ('1a07b51d8961', '6a3b843cf66c')
    ]
    for number in range(100, 150):
        write(classes / 'cat' / f'{number}.png')
    (classes / 'dog' / '5.png').unlink()
    again = load(classes, 'val', eval_fraction=0.2)
    assert set(val.files) - {'dog/5.png'} <= set(again.files)
    assert not set(again.files) & set(train.files)


def test_folders_of_classes_without_splits_are_explained(classes):
    with pytest.raises(
        UserError, match=r"no folder 'train' but \['cat', 'dog'\].*eval_fraction=0.1"
    ):
        load(classes)
    with pytest.raises(UserError, match="makes the splits 'train' and 'val'; there is no 'test'"):
        load(classes, 'test', eval_fraction=0.1)
    with pytest.raises(UserError, match="need two names, and both are 'train'"):
        load(classes, eval_fraction=0.1, eval_split='train')


@pytest.fixture
def flat(tmp_path):
    """Images in one folder, and in one below it."""
    for number in range(6):
        write(tmp_path / 'images' / f'{number}.png', number)
    write(tmp_path / 'images' / 'more' / '6.jpg', 6)
    return tmp_path / 'images'


TABLES = {
    'comma': 'image,label\n0.png,cat\n1.png,big dog\nmore/6.jpg,cat\n',
    'no header': '0.png,cat\n1.png,big dog\nmore/6.jpg,cat\n',
    'without endings': 'id;breed\n0;cat\n1;big dog\nmore/6;cat\n',
    'tabs': '0.png\tcat\n1.png\tbig dog\nmore/6.jpg\tcat\n',
    'spaces': '0.png cat\n1.png big dog\nmore/6.jpg cat\n',
    'quoted, with a byte order mark': (
        '\ufeffimage,label,x\n"0.png","cat",3\n1.png,"big dog",4\nmore/6,cat,\n'
    ),
    'other paths': './0.png,cat\nFOLDER/1.png,big dog\nmore/6.jpg,cat\n',
    'Windows line ends': '0.png,cat\r\n1.png,big dog\r\n\r\nmore/6.jpg,cat\r\n',
    'one column a class': 'image,big dog,cat\n0.png,0,1\n1.png,1,0\nmore/6.jpg,0,1\n',
}


@pytest.mark.parametrize('table', TABLES)
def test_a_table_gives_the_labels(flat, table, caplog):
    text = TABLES[table].replace('FOLDER', str(flat))
    (flat / 'train.csv').write_text(text, newline='')
    (flat / 'val.csv').write_text('2.png,cat\n' if table == 'no header' else text)
    source = load(flat, labels='{split}.csv')
    assert source.class_names == ['big dog', 'cat']
    assert (source.files, source.labels) == (['0.png', '1.png', 'more/6.jpg'], [1, 0, 1])
    assert decoding.decode(source[2]['image'])[0, 0, 0] in (5, 6, 7)  # a JPEG


def test_one_table_for_both_splits_and_what_has_no_label(flat, caplog):
    (flat.parent / 'labels.txt').write_text('\n'.join(f'{i}.png {i % 3}' for i in range(6)))
    settings = {'labels': str(flat.parent / 'labels.txt'), 'eval_fraction': 0.5}
    train, val = (load(flat, split, **settings) for split in ('train', 'val'))
    assert sorted(train.files + val.files) == [f'{i}.png' for i in range(6)]
    assert train.class_names == ['0', '1', '2']
    assert '1 files are left out' in caplog.text
    assert 'more/6.jpg' in caplog.text


@pytest.mark.parametrize(
    'text',
    [
        'image,tags\n0.png,water boat\n1.png,\n2.png,boat\n',
        '0.png,water|boat\n1.png,\n2.png,boat\n',
        'image,boat,water\n0.png,1,1\n1.png,0,0\n2.png,1,0\n',
        'image,a,b\n0.png,water,boat\n1.png,,\n2.png,boat,\n',
    ],
)
def test_an_image_has_any_number_of_labels(flat, text):
    (flat / 'train.csv').write_text(text)
    (flat / 'val.csv').write_text(text)
    source = load(flat, labels='{split}.csv', loss='sigmoid')
    assert source.class_names == ['boat', 'water']
    assert [record['label'].tolist() for record in source] == [[1, 1], [0, 0], [1, 0]]


def test_classes_are_those_of_both_tables_and_numbers_have_their_order(flat):
    (flat / 'train.csv').write_text('0.png,10\n1.png,9\n')
    (flat / 'val.csv').write_text('2.png,100\n')
    assert load(flat, labels='{split}.csv').class_names == ['9', '10', '100']
    assert load(flat, 'val', labels='{split}.csv').labels == [2]


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('0.png,cat\n9.png,dog\n', r"names 1 images that are not in the folder, such as '9.png'"),
        ('9.png,cat\n0.png,dog\n', r"names 1 images that are not in the folder, such as '9.png'"),
        ('image,label\n', r'names 0 images'),
        ('', r'names 0 images'),
        ('0.png\n1.png\n', r"has no label for '0.png'"),
        ('0.png,cat\n1.png,\n', r"has no label for '1.png'"),
        ('0.png,cat\n0.png,dog\n1.png,cat\n', r'0.png has 2 labels; .*--config.loss=sigmoid'),
        (b'\xff\xfe0', r'train.csv cannot be read'),
    ],
)
def test_a_wrong_table_is_one_line(flat, text, says):
    data = text if isinstance(text, bytes) else text.encode()
    (flat / 'train.csv').write_bytes(data)
    (flat / 'val.csv').write_text('1.png,cat\n')
    with pytest.raises(UserError, match=says) as caught:
        load(flat, labels='{split}.csv')
    assert '\n' not in str(caught.value)


def test_a_name_without_its_ending_has_to_be_one_image(flat):
    write(flat / '0.jpg')
    (flat / 'train.csv').write_text('1,cat\n0,dog\n')
    (flat / 'val.csv').write_text('1.png,cat\n')
    with pytest.raises(UserError, match="names 1 images that are not in the folder, such as '0'"):
        load(flat, labels='{split}.csv')


def test_a_missing_table_is_one_line(flat):
    with pytest.raises(UserError, match=r'config\.dataset\.labels: .*/train.csv cannot be read'):
        load(flat, labels='{split}.csv')


def test_balanced_weights_are_scikit_learns(classes):
    from sklearn.utils.class_weight import compute_class_weight

    for number in range(70):
        (classes / 'dog' / f'{number}.png').unlink()
    c = small_config(loss_weights='balanced')
    source = load(classes, eval_fraction=0.1)
    labels = np.array(source.labels)
    expected = compute_class_weight('balanced', classes=np.arange(2), y=labels)
    found = class_weights.of_loss(c, source)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.mean(found[labels]) == pytest.approx(1)
    assert class_weights.of_loss(small_config(), source) is None
    (classes / 'weights.csv').write_text('dog,3\ncat,0.5\n')
    c.loss_weights = str(classes / 'weights.csv')
    np.testing.assert_array_equal(class_weights.of_loss(c, source), [0.5, 3])


def test_balanced_weights_need_labels_that_are_known():
    c = small_config(loss_weights='balanced')
    c.dataset.source = 'synthetic'
    with pytest.raises(UserError, match="'synthetic' does not know; give a file of weights"):
        class_weights.of_loss(c, sources.load(c, 'train'))
