"""What `predict` makes of its arguments."""

from xception_flax.inference import listing


def test_a_folder_stands_for_the_images_in_it_that_are_not_hidden(tmp_path):
    names = ('b.jpg', 'a/1.PNG', 'a/2.webp', 'a/notes.txt', '._b.jpg', '.trash/3.png', 'x.gif')
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    (tmp_path / 'empty').mkdir()
    files, problems = listing.expand([str(tmp_path), str(tmp_path / '._b.jpg'), 'nothing.jpg'])
    found = [file.removeprefix(f'{tmp_path}/') for file in files]
    assert found == ['a/1.PNG', 'a/2.webp', 'b.jpg', 'x.gif', '._b.jpg']  # the last by its name
    assert problems == ['there is no file nothing.jpg']
    assert 'has no images (.jpg' in listing.expand([str(tmp_path / 'empty')])[1][0]
