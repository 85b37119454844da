"""Decodes thousands of damaged and hostile images, and looks at how each ends.

    python experiments/faults/images.py --count=20000

Each format has files of several kinds: colours, depths, animations, EXIF data. Copies are cut, get
other bytes, bits, sizes and lengths of segments; half of the PNGs get checksums that fit. Each has
to end with an image or an error of one line; within a second; and with no more memory than 8 times
the image as RGB, besides the file and 4 MB. A million pixels are allowed, so a refused file may
take 24 MB. Prints a table, and every attempt that ended otherwise, with its seed; the status is
then 1. Runs on Linux, whose /proc tells the memory of one attempt.
"""

import collections
import io
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import sys
import time
import zlib
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from xception_flax.data import decoding
from xception_flax.runtime import program

flags.DEFINE_integer('count', 20_000, 'Files of each format.', lower_bound=1)
flags.DEFINE_integer('seed', 0, 'Seed of the first file.')
flags.DEFINE_list('formats', None, 'Formats to try; all by default.')

WIDTH, HEIGHT = 48, 32
SECONDS, MEGAPIXELS, BYTES_PER_PIXEL, EXTRA = 1.0, 1.0, 8 * 3, 4e6
SIZES = (0, 1, 255, 2**15 - 1, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def originals() -> dict[str, list[bytes]]:
    """Whole files of each format."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    slope = np.linspace(0, 255, WIDTH).astype(np.uint8)
    smooth = Image.fromarray(np.stack([np.broadcast_to(slope, (HEIGHT, WIDTH))] * 3, -1))
    grey, deep = (
        smooth.convert('L'),
        Image.fromarray(np.array(smooth.convert('I'), np.uint16) * 257),
    )
    palette, alpha = noise.quantize(16), noise.convert('RGBA')
    exif = Image.Exif()
    exif[0x0112] = 6
    film: dict[str, Any] = {'save_all': True, 'append_images': [smooth, noise], 'duration': 40}
    kinds: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        'JPEG': [
            (noise, {}), (smooth, {'progressive': True}), (grey, {}), (noise, {'exif': exif}),
            (smooth.convert('CMYK'), {}), (noise, {'subsampling': 0, 'restart_marker_rows': 1}),
        ],
        'PNG': [
            (noise, {}), (grey, {}), (deep, {}), (palette, {'transparency': 0}), (alpha, {}),
            (noise, {'exif': exif}), (grey.convert('1'), {}),
        ],
        'animated PNG': [(noise, film), (noise, film | {'default_image': True}), (alpha, film)],
        'WebP': [
            (noise, {}), (noise, {'lossless': True}), (alpha, {}), (noise, {'exif': exif}),
            (noise, film),
        ],
        'GIF': [(palette, {}), (grey, {}), (palette, {'transparency': 0}), (palette, film)],
        'BMP': [(noise, {}), (grey, {}), (palette, {}), (grey.convert('1'), {}), (alpha, {})],
        'TIFF': [
            (noise, {}), (grey, {'compression': 'tiff_lzw'}), (deep, {}), (palette, {}),
            (smooth.convert('CMYK'), {'compression': 'tiff_adobe_deflate'}),
            (noise, {'exif': exif}), (noise, {'compression': 'jpeg'}),
            (grey.convert('1'), {'compression': 'group4'}),
            (noise, {'save_all': True, 'append_images': [smooth]}),
            (smooth, {'compression': 'packbits'}),
        ],
    }  # fmt: skip
    found: dict[str, list[bytes]] = {}
    for name, images in kinds.items():
        for image, options in images:
            content = io.BytesIO()
            # A copy, since Pillow leaves settings of one format in the image.
            image.copy().save(content, name.rpartition(' ')[2].upper(), **options)
            found.setdefault(name, []).append(content.getvalue())
    return found


def damage(files: list[bytes], seed: int) -> bytes:
    """One of the files, with one to three changes; most of them where headers are."""
    rng = np.random.default_rng(seed)
    found = bytearray(files[rng.integers(len(files))])
    for _ in range(int(rng.integers(1, 4))):
        reach = min(len(found), int(rng.choice([64, 256, len(found)])))
        at = int(rng.integers(reach))
        match rng.integers(7):
            case 0:
                del found[max(at, 16) :]
            case 1:
                found[at] ^= 1 << int(rng.integers(8))
            case 2:
                for where in rng.integers(at, len(found), 4):
                    found[where] = int(rng.integers(256))
            case 3:
                width = int(rng.choice([2, 4]))
                value = int(rng.choice(SIZES)) % 256**width
                order = 'big' if rng.random() < 0.5 else 'little'
                found[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]
            case 4:
                found[at:at] = found[at : at + int(rng.integers(1, 256))]
            case 5:
                del found[at : at + int(rng.integers(1, 64))]
            case 6:
                found[at : at + 16] = bytes(16)
        if not found:
            break
    if found.startswith(b'\x89PNG') and rng.random() < 0.5:
        repair(found)
    return bytes(found)


def repair(png: bytearray) -> None:
    """Corrects the checksums of a PNG, as far as its chunks are whole."""
    at = 8
    while at + 12 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], 'big')
        if end <= len(png):
            png[end - 4 : end] = zlib.crc32(png[at + 4 : end - 4]).to_bytes(4, 'big')
        at = end


def work(pipe: multiprocessing.connection.Connection, files: list[bytes]) -> None:
    """Decodes files from a pipe; answers with the ending, pixels, memory and seconds of each."""
    status, clear = pathlib.Path('/proc/self/status'), pathlib.Path('/proc/self/clear_refs')

    def memory(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries write there, too
    for data in files:
        decoding.decode(data)  # what decoders keep is not counted
    while True:
        data = pipe.recv_bytes()
        clear.write_text('5')  # starts VmHWM, the largest memory so far, anew
        before, began, pixels = memory('VmRSS'), time.perf_counter(), 0
        try:
            image = decoding.decode(data, MEGAPIXELS)
            contract = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            ending, pixels = 'read' if contract else f'{image.dtype} {image.shape}', image.size // 3
            del image
        except decoding.BadImageError as error:
            ending = 'refused' if '\n' not in str(error) else 'several lines'
        except Exception as error:
            ending = f'{type(error).__name__}: {error}'
        seconds = time.perf_counter() - began
        pipe.send((ending, pixels, memory('VmHWM') - before, seconds))


def start(
    files: list[bytes],
) -> tuple[multiprocessing.Process, multiprocessing.connection.Connection]:
    """A process that decodes, and its pipe."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=work, args=(there, files), daemon=True)
    process.start()
    there.close()
    return process, here


def main() -> None:
    """Tries all formats."""
    values = flags.FLAGS
    print('| format | files | read | refused | otherwise | slowest, s | most memory |')
    print('|---|---|---|---|---|---|---|', flush=True)
    failed = False
    for name, files in originals().items():
        if values.formats and name not in values.formats:
            continue
        process, pipe = start(files)
        endings: collections.Counter[str] = collections.Counter()
        slowest = most = 0.0
        for seed in range(values.seed, values.seed + values.count):
            data = damage(files, seed)
            try:
                pipe.send_bytes(data)
                if not pipe.poll(30):
                    process.kill()
                ending, pixels, memory, seconds = pipe.recv()
            except (EOFError, OSError):
                process.join()
                ending, pixels, memory, seconds = _death(process), 0, 0, 0.0
                process, pipe = start(files)
            if seconds > SECONDS:
                ending = f'{seconds:.1f} s'
            elif memory > BYTES_PER_PIXEL * (pixels or MEGAPIXELS * 1e6) + len(data) + EXTRA:
                ending = f'{memory / 1e6:.1f} MB for {pixels} pixels and {len(data)} bytes'
            slowest, most = max(slowest, seconds), max(most, memory)
            known = ending in ('read', 'refused')
            endings[ending if known else 'otherwise'] += 1
            if not known:
                failed = True
                print(f'{name}, seed {seed}: {ending}', file=sys.stderr, flush=True)
        process.kill()
        print(
            f'| {name} | {values.count:,} | {endings["read"]:,} | {endings["refused"]:,} | '
            f'{endings["otherwise"]:,} | {slowest:.2f} | {most / 1e6:.1f} MB |',
            flush=True,
        )
    sys.exit(int(failed))


def _death(process: multiprocessing.Process) -> str:
    code = process.exitcode or 0
    return f'ended by {signal.Signals(-code).name}' if code < 0 else f'ended with {code}'


if __name__ == '__main__':
    program.run(main, alone=True)
