"""Files of images to arrays, by decoders that see no more than they need.

JPEG and PNG are decoded by OpenCV, other formats by Pillow. What a file declares is read first: an
image of too many pixels is refused before memory is taken for it.
"""

import io
import struct
import warnings

import cv2
import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (
    '.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff',
)  # fmt: skip
MAX_MEGAPIXELS = 89.0  # from where on Pillow warns of a decompression bomb
_STARTS = {
    b'\xff\xd8\xff': 'JPEG', b'\x89PNG\r\n\x1a\n': 'PNG', b'RIFF': 'WEBP', b'BM': 'BMP',
    b'GIF8': 'GIF', b'II*\0': 'TIFF', b'MM\0*': 'TIFF', b'II+\0': 'TIFF', b'MM\0+': 'TIFF',
}  # fmt: skip
# Chunks of PNG that an image needs, besides those that a decoder has to know: transparency, EXIF.
_PNG_ANCILLARY = (b'tRNS', b'eXIf')

# `BadImageError` reports errors.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
warnings.filterwarnings('ignore', module=r'PIL\.')


class BadImageError(Exception):
    """The bytes are not a readable image."""


def decode(data: bytes | np.ndarray, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP, BMP, GIF or TIFF, or widens a grey array, to RGB.

    The bytes tell the format, not the file name. CMYK becomes RGB, 16 bits become 8, transparency
    is dropped, and EXIF rotation is applied (TensorFlow's decoder ignores it). An animation gives
    its still image, or else its first; several pages give the first.

    Args:
      data: a file, or uint8 `[H, W]` or `[H, W, 3]`.
      max_megapixels: an image that declares more million pixels is not decoded.

    Returns:
      `[H, W, 3]` uint8.

    Raises:
      BadImageError: the image cannot be read, is truncated, or too large.
    """
    if isinstance(data, np.ndarray):
        return data if data.ndim == 3 else np.repeat(data[..., None], 3, -1)
    if not data:
        raise BadImageError('it is empty')
    kind = next((kind for start, kind in _STARTS.items() if data.startswith(start)), None)
    if kind == 'WEBP' and data[8:12] not in (b'WEBP', b''):  # RIFF holds sounds and films, too
        kind = None
    if kind == 'JPEG':
        _check_size(*_jpeg_size(data), max_megapixels)
        return _by_opencv(data, kind)
    if kind == 'PNG':
        data, width, height = _plain_png(data)
        _check_size(width, height, max_megapixels)
        return _by_opencv(data, kind)
    if kind == 'WEBP':  # Pillow takes memory for the image before it tells its size
        _check_size(*_webp_size(data), max_megapixels)
    if kind:
        return _by_pillow(data, kind, max_megapixels)
    raise BadImageError('it is no JPEG, PNG, WebP, BMP, GIF or TIFF')


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height in a JPEG's frame header, found as libjpeg finds it."""
    at = 2
    while 0 <= at < len(data) - 9:
        marker = data[at + 1]
        if data[at] != 0xFF:
            at = data.find(b'\xff', at)  # libjpeg skips what stands between the segments
        elif marker == 0xFF:  # padding
            at += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # without a length
            at += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from('>HH', data, at + 5)
            return width, height
        elif marker in (0xD9, 0xDA):  # the end, or the image itself
            break
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
    raise BadImageError('a damaged JPEG')


def _plain_png(data: bytes) -> tuple[bytes, int, int]:
    """A PNG without the chunks that its still image does not need; its width and height.

    Damaged animations end the process inside of OpenCV; compressed texts and profiles may unpack to
    any size.
    """
    at, kept, kind = 8, [data[:8]], b''
    while kind != b'IEND':
        length, kind = int.from_bytes(data[at : at + 4], 'big'), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data) or (kind == b'IHDR') != (at == 8) or (at == 8 and length != 13):
            raise BadImageError('a damaged PNG')
        if kind in _PNG_ANCILLARY or not kind[0] & 32:  # a small letter: ancillary
            kept.append(data[at:end])
        at = end
    width, height = struct.unpack_from('>II', data, 16)
    return b''.join(kept), width, height


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in the first chunk of a WebP: extended, lossless or lossy."""
    low, high = int.from_bytes(data[24:27], 'little'), int.from_bytes(data[27:30], 'little')
    match data[12:16]:
        case b'VP8X':
            return low + 1, high + 1
        case b'VP8L':
            bits = int.from_bytes(data[21:25], 'little')
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b'VP8 ' if len(data) >= 30:
            width, height = struct.unpack_from('<HH', data, 26)
            return width & 0x3FFF, height & 0x3FFF
    raise BadImageError('a damaged WEBP')


def _by_opencv(data: bytes, kind: str) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise BadImageError(' '.join(str(error).split())) from error
    if image is None:
        raise BadImageError(f'a damaged {kind}')
    return image


def _by_pillow(data: bytes, kind: str, max_megapixels: float) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            _check_size(*image.size, max_megapixels)
            image.load()
            return np.array(_rgb(_upright(image)))
    except BadImageError:
        raise
    except Exception as error:  # Pillow lets through what its format's reader raises
        raise BadImageError(f'a damaged {kind}, or one that Pillow does not know') from error


def _upright(image: Image.Image) -> Image.Image:
    """The image, rotated as its EXIF data says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data leave the image itself whole
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I;16'):  # Pillow would cut off values from 256 on
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ('I', 'F'):
        raise BadImageError('it has 32 bits a value; store it with 8')
    image.info.pop('transparency', None)  # Pillow warns of some kinds
    return image.convert('RGB')


def _check_size(width: int, height: int, max_megapixels: float) -> None:
    if width * height > max_megapixels * 1e6:
        raise BadImageError(
            f'it declares {width} x {height} pixels, and config.max_megapixels is {max_megapixels}'
        )
