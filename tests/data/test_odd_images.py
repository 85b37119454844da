"""Unusual and damaged files: each is decoded correctly, or reported."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from helpers import default_config
from PIL import Image

from xception_flax.data import decoding, images, sources
from xception_flax.data.reader import Reader
from xception_flax.data.sources import folder

HEIGHT, WIDTH = 64, 96
# Three bands: red, green, blue.
BANDS = np.repeat(
    np.array([[[220, 30, 40], [30, 200, 60], [40, 60, 210]]], np.uint8), WIDTH // 3, 1
).repeat(HEIGHT, 0)
GREY = np.repeat(np.array([[40, 120, 230]], np.uint8), WIDTH // 3, 1).repeat(HEIGHT, 0)


def encode(pixels, kind, mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    data = io.BytesIO()
    (image.convert(mode) if mode else image).save(data, kind, **options)
    return data.getvalue()


def without_adobe_marker(jpeg):
    start = jpeg.index(b'\xff\xee')
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], 'big') :]


def with_exif(orientation):
    image = Image.fromarray(BANDS)
    exif = image.getexif()
    exif[0x0112] = orientation
    return encode(image, 'JPEG', quality=95, exif=exif)


def upright(kind, orientation):
    image = Image.fromarray(BANDS)
    exif = image.getexif()
    exif[0x0112] = orientation
    return encode(image, kind, exif=exif, **({'lossless': True} if kind == 'WEBP' else {}))


def animated(kind, **options):
    """The bands, and then noise."""
    noise = Image.fromarray(NOISE)
    return encode(BANDS, kind, save_all=True, append_images=[noise], duration=40, **options)


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def tiny_png(width, height, pixels=b''):
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    body = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(pixels)) + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + body


def claims(jpeg, width, height):
    """A JPEG with another size in its frame header."""
    start = jpeg.index(b'\xff\xc0') + 5
    return jpeg[:start] + struct.pack('>HH', height, width) + jpeg[start + 4 :]


def with_alpha(value):
    return Image.fromarray(np.dstack([BANDS, np.full((HEIGHT, WIDTH), value, np.uint8)]))


def sixteen_bits(image):
    return cv2.imencode('.png', image[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


def cut(data, fraction):
    return data[: int(fraction * len(data))]


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
JPEG, PNG = encode(BANDS, 'JPEG', quality=95), encode(BANDS, 'PNG')
GREY_RGB = np.stack([GREY] * 3, -1)

# Files that can be read, and the image that each must give.
READABLE = {
    'rgb': (JPEG, BANDS),
    'progressive': (encode(BANDS, 'JPEG', quality=95, progressive=True), BANDS),
    'no_subsampling': (encode(BANDS, 'JPEG', quality=95, subsampling=0), BANDS),
    'grey': (encode(GREY, 'JPEG', quality=95), GREY_RGB),
    'cmyk': (encode(BANDS, 'JPEG', 'CMYK', quality=95), BANDS),
    'cmyk_without_adobe': (
        without_adobe_marker(encode(BANDS, 'JPEG', 'CMYK', quality=95)),
        BANDS,
    ),
    'png': (PNG, BANDS),
    'png_grey': (encode(GREY, 'PNG'), GREY_RGB),
    'png_grey_alpha': (encode(with_alpha(80).convert('LA'), 'PNG'), None),
    'png_16_bits': (sixteen_bits(BANDS), BANDS),
    'png_16_bits_grey': (encode(Image.fromarray(GREY.astype(np.uint16) * 257), 'PNG'), GREY_RGB),
    'png_palette': (encode(Image.fromarray(BANDS).quantize(8), 'PNG'), BANDS),
    'png_palette_transparent': (
        encode(Image.fromarray(BANDS).quantize(8), 'PNG', transparency=0),
        BANDS,
    ),
    'png_1_bit': (
        encode(Image.fromarray(GREY > 100), 'PNG'),
        np.where(GREY_RGB > 100, 255, 0),
    ),
    'png_alpha': (encode(with_alpha(128), 'PNG'), BANDS),
    'png_all_transparent': (encode(with_alpha(0), 'PNG'), BANDS),
    'png_interlaced_off': (encode(BANDS, 'PNG', compress_level=0), BANDS),
    'trailing_garbage': (JPEG + b'\0' * 100, BANDS),
    'trailing_text': (JPEG + b'<html>', BANDS),
    'exif_1': (with_exif(1), BANDS),
    'exif_2': (with_exif(2), BANDS[:, ::-1]),
    'exif_3': (with_exif(3), BANDS[::-1, ::-1]),
    'exif_4': (with_exif(4), BANDS[::-1]),
    'exif_5': (with_exif(5), BANDS.transpose(1, 0, 2)),
    'exif_6': (with_exif(6), BANDS.transpose(1, 0, 2)[:, ::-1]),
    'exif_7': (with_exif(7), BANDS.transpose(1, 0, 2)[::-1, ::-1]),
    'exif_8': (with_exif(8), BANDS.transpose(1, 0, 2)[::-1]),
    'png_exif_6': (upright('PNG', 6), BANDS.transpose(1, 0, 2)[:, ::-1]),
    'png_animated': (animated('PNG'), BANDS),
    'png_animated_beside_its_image': (animated('PNG', default_image=True), BANDS),
    'png_long_text': (
        PNG[:33] + chunk(b'zTXt', b'x\0\0' + zlib.compress(bytes(10**7))) + PNG[33:],
        BANDS,
    ),
    'webp': (encode(BANDS, 'WEBP', quality=95), BANDS),
    'webp_lossless_alpha': (encode(with_alpha(80), 'WEBP', lossless=True, exact=True), BANDS),
    'webp_animated': (animated('WEBP', lossless=True), BANDS),
    'webp_exif_6': (upright('WEBP', 6), BANDS.transpose(1, 0, 2)[:, ::-1]),
    'gif': (encode(Image.fromarray(BANDS).quantize(8), 'GIF'), BANDS),
    'gif_animated': (animated('GIF'), BANDS),
    'gif_transparent': (encode(Image.fromarray(BANDS).quantize(8), 'GIF', transparency=0), BANDS),
    'gif_grey': (encode(GREY, 'GIF'), GREY_RGB),
    'bmp': (encode(BANDS, 'BMP'), BANDS),
    'bmp_grey': (encode(GREY, 'BMP'), GREY_RGB),
    'bmp_1_bit': (encode(Image.fromarray(GREY > 100), 'BMP'), np.where(GREY_RGB > 100, 255, 0)),
    'tiff': (encode(BANDS, 'TIFF'), BANDS),
    'tiff_lzw': (encode(BANDS, 'TIFF', compression='tiff_lzw'), BANDS),
    'tiff_cmyk': (encode(BANDS, 'TIFF', 'CMYK'), BANDS),
    'tiff_16_bits_grey': (
        encode(Image.fromarray(GREY.astype(np.uint16) * 257), 'TIFF'),
        GREY_RGB,
    ),
    'tiff_pages': (animated('TIFF'), BANDS),
    'tiff_orientation_6': (upright('TIFF', 6), BANDS.transpose(1, 0, 2)[:, ::-1]),
    '1x1_jpeg': (encode(BANDS[:1, :1], 'JPEG', quality=95), BANDS[:1, :1]),
    '1x1_png': (encode(BANDS[:1, :1], 'PNG'), BANDS[:1, :1]),
    '1_row': (encode(BANDS[:1], 'PNG'), BANDS[:1]),
    '1_column': (encode(BANDS[:, :1], 'PNG'), BANDS[:, :1]),
    'panorama': (
        encode(np.broadcast_to(BANDS[:1, :1], (50, 20_000, 3)), 'JPEG', quality=95),
        np.broadcast_to(BANDS[:1, :1], (50, 20_000, 3)),
    ),
    'tower': (
        encode(np.broadcast_to(BANDS[:1, :1], (20_000, 30, 3)), 'PNG'),
        np.broadcast_to(BANDS[:1, :1], (20_000, 30, 3)),
    ),
}

UNREADABLE = {
    'empty': b'',
    'text': b'no image at all',
    'html': b'<!DOCTYPE html><html><body>404</body></html>',
    'zeros': b'\0' * 5000,
    'jpeg_start_only': b'\xff\xd8\xff\xe0',
    'jpeg_in_header': JPEG[:100],
    'jpeg_half': cut(JPEG, 0.5),
    'jpeg_noise_half': cut(encode(NOISE, 'JPEG', quality=95), 0.5),
    'jpeg_noise_last_tenth': cut(encode(NOISE, 'JPEG', quality=95), 0.9),
    'progressive_half': cut(encode(NOISE, 'JPEG', progressive=True), 0.5),
    'png_signature_only': PNG[:8],
    'png_half': cut(encode(NOISE, 'PNG'), 0.5),
    'png_without_end': encode(NOISE, 'PNG')[:-20],
    'png_flipped_bit': flipped(encode(NOISE, 'PNG')),
    'pdf': b'%PDF-1.4 nothing',
    'png_of_56_bytes_for_4_gigabytes': tiny_png(65_000, 22_000),
    'png_chunk_of_a_gigabyte': PNG[:33] + b'\x40' + PNG[34:],
    'png_without_header': PNG[:8] + PNG[33:],
    'png_with_two_headers': PNG[:33] + PNG[8:],
    'jpeg_that_claims_a_gigapixel': claims(JPEG, 16_000, 65_000),
    'jpeg_without_frame': b'\xff\xd8\xff\xe0\0\4ab\xff\xda' + bytes(100),
    'webp_half': cut(encode(NOISE, 'WEBP'), 0.5),
    'webp_start_only': b'RIFF',
    'wav': b'RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00',
    'gif_half': cut(encode(Image.fromarray(NOISE).quantize(8), 'GIF'), 0.5),
    'bmp_that_claims_a_gigapixel': (
        encode(BANDS, 'BMP')[:18] + struct.pack('<ii', 40_000, 40_000) + encode(BANDS, 'BMP')[26:]
    ),
    'tiff_half': cut(encode(NOISE, 'TIFF'), 0.5),
    'tiff_floats': encode(Image.fromarray(GREY.astype(np.float32)), 'TIFF'),
}  # fmt: skip


def test_the_corpus_is_large():
    assert len(READABLE) + len(UNREADABLE) >= 40


@pytest.mark.parametrize('name', READABLE)
def test_a_readable_file_is_decoded_correctly(name):
    data, expected = READABLE[name]
    image = decoding.decode(data)
    assert image.dtype == np.uint8
    if expected is None:  # grey with transparency: grey
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert (np.ptp(image.astype(int), -1) == 0).all()
        return
    assert image.shape == expected.shape
    # JPEG's own loss is at the edges between bands.
    difference = np.abs(image.astype(int) - expected)
    assert np.median(difference) <= 2
    assert difference.mean() < 8
    lossless = data.startswith(b'\x89PNG')
    assert not lossless or difference.max() == 0


@pytest.mark.parametrize('name', READABLE)
def test_a_readable_file_becomes_an_input_of_the_network(name):
    config = default_config(image_size=71)
    image = decoding.decode(READABLE[name][0])
    for crop in ('random', 'pad', 'none'):
        config.augment.crop = crop
        made = images.for_training(image, config, np.random.default_rng(0))
        assert (made.shape, made.dtype) == ((71, 71, 3), np.uint8)
    made = images.for_evaluation(image, config)
    assert (made.shape, made.dtype) == ((71, 71, 3), np.uint8)


@pytest.mark.parametrize('name', UNREADABLE)
def test_an_unreadable_file_is_reported(name):
    with pytest.raises(
        decoding.BadImageError, match=r'empty|no JPEG, PNG|damaged|declares|32 bits'
    ):
        decoding.decode(UNREADABLE[name])


@pytest.fixture
def data_dir(tmp_path):
    """All files in class folders; every name ends in .JPEG, whatever the format."""
    for split in ('train', 'val'):
        for label, group in (('bad', UNREADABLE), ('good', READABLE)):
            (tmp_path / split / label).mkdir(parents=True)
            for name, data in group.items():
                data = data if label == 'bad' else data[0]
                (tmp_path / split / label / f'{name}.JPEG').write_bytes(data)
    return tmp_path


def test_a_reader_counts_the_unreadable_files_and_no_others(data_dir):
    config = default_config(dataset__data_dir=str(data_dir))
    reader = Reader(folder.load(config, 'train'), 1.0)
    for index in range(len(reader)):
        unreadable = []
        reader.read(index, unreadable)
        reader.count(unreadable)
    assert {reader.source.name(i).split('/')[-1] for i in reader.unreadable} == {
        f'{name}.JPEG' for name in UNREADABLE
    }


def test_a_dangling_link_is_an_unreadable_file(data_dir):
    (data_dir / 'train' / 'bad' / '1.JPEG').symlink_to('nowhere')  # the first of the split
    config = default_config(dataset__source='folder', dataset__data_dir=str(data_dir))
    reader = Reader(sources.load(config, 'train'), 1.0)
    unreadable = []
    assert reader.read(0, unreadable) is None
    assert [index for index, _ in unreadable] == [0]


def test_the_program_check_lists_each_unreadable_file(data_dir, program):
    args = (
        '-m', 'xception_flax.check', '--config=configs/imagenet.py',
        '--config.dataset.source=folder', f'--config.dataset.data_dir={data_dir}',
        '--config.dataset.eval_split=val',
    )  # fmt: skip
    output = program(*args, status=1)
    total = len(READABLE) + len(UNREADABLE)
    for split in ('train', 'val'):
        for name in UNREADABLE:
            assert f'{data_dir}/{split}/bad/{name}.JPEG cannot be read: ' in output
        assert f'{split}: {total} images, {len(UNREADABLE)} unreadable' in output
    assert not any('/good/' in line and 'cannot' in line for line in output.splitlines())
    for path in (data_dir / 'train' / 'bad').iterdir():
        path.write_bytes(JPEG)
    again = program(*args, '--config.dataset.eval_split=train')
    assert f'train: {total} images, 0 unreadable' in again


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'GIF'])
def test_damaged_animations_end_no_process(kind):
    """A few of the files of experiments/faults/images.py; OpenCV ends in about 1 of 20 of PNG."""
    data, rng = animated(kind), np.random.default_rng(0)
    ends = {'read': 0, 'refused': 0}
    for _ in range(300):
        damaged = bytearray(data)
        for at in rng.integers(8, len(data), 4):
            damaged[at] = rng.integers(256)
        try:
            assert decoding.decode(bytes(damaged)).shape[2] == 3
            ends['read'] += 1
        except decoding.BadImageError:
            ends['refused'] += 1
    assert min(ends.values()) > 5


def test_the_limit_of_pixels_is_a_setting(tmp_path):
    (tmp_path / 'train' / 'a').mkdir(parents=True)
    (tmp_path / 'train' / 'a' / '1.png').write_bytes(PNG)
    source = folder.load(default_config(dataset__data_dir=str(tmp_path)), 'train')
    assert Reader(source, 1.0, max_megapixels=0.007).read(0, [])
    assert Reader(source, 1.0, max_megapixels=0.006).read(0, []) is None
    with pytest.raises(decoding.BadImageError, match=r'96 x 64 pixels.*max_megapixels is 0.006'):
        decoding.decode(PNG, 0.006)
