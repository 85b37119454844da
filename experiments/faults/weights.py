"""Loads thousands of damaged and hostile weights files, and looks at how each ends.

    pip install -e '.[bench,test]'  # Keras and PyTorch write the files
    python experiments/faults/weights.py --count=2000

Each file is loaded in a process of its own. It has to end with the weights, or with one line;
within 30 seconds; with less memory than twice the size of the file, and 48 MB for Python's own;
and without starting a program, opening a connection or writing a file. Prints a table, and every
attempt that ended otherwise, with its seed.
"""

import collections
import dataclasses
import functools
import io
import json
import os
import pathlib
import resource
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable

import h5py
import jax
import numpy as np
from absl import flags

import xception_flax
from xception_flax import config as configs
from xception_flax import models
from xception_flax.base.errors import UserError
from xception_flax.models.layers import widen
from xception_flax.runtime import program

flags.DEFINE_integer('count', 2000, 'Files of each format.', lower_bound=1)
flags.DEFINE_integer('seed', 0, 'Seed of the first file.')
flags.DEFINE_list('formats', None, 'Formats to try; all by default.')

WIDTH, CLASSES, SIDE = 1 / 8, 5, 71
SECONDS, EXTRA = 30, 48e6
FORBIDDEN = (
    'os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'os.remove', 'os.rename', 'shutil.rmtree',
    'subprocess.Popen', 'socket.connect', 'ctypes.dlopen',
)  # fmt: skip
Mutate = Callable[[bytes, np.random.Generator], bytes]


def keras_files(folder: pathlib.Path) -> dict[str, bytes]:
    """A narrow Xception, in the three formats of Keras."""
    os.environ.setdefault('KERAS_BACKEND', 'jax')
    import keras

    config = keras.applications.Xception(
        weights=None, classes=CLASSES, input_shape=(SIDE, SIDE, 3)
    ).get_config()
    for layer in config['layers']:
        layer.pop('build_config', None)
        if 'filters' in layer['config']:
            layer['config']['filters'] = int(widen([layer['config']['filters']], WIDTH)[0])
    narrow = keras.Model.from_config(config)
    narrow.save(folder / 'x.h5')
    narrow.save(folder / 'x.keras')
    narrow.save_weights(folder / 'x.weights.h5')
    return {name: (folder / name).read_bytes() for name in ('x.h5', 'x.weights.h5', 'x.keras')}


def pytorch_files(folder: pathlib.Path) -> dict[str, bytes]:
    """A narrow Xception of timm, in the three formats of PyTorch."""
    import safetensors.torch
    import torch

    model = network('timm')
    variables = model.init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32))
    config = configs.default()
    xception_flax.Trained(model, variables, config).save(folder / 'x.safetensors')
    tensors = safetensors.torch.load_file(folder / 'x.safetensors')
    torch.save({'epoch': 1, 'state_dict': tensors}, folder / 'x.pth')
    torch.save(tensors, folder / 'old.pth', _use_new_zipfile_serialization=False)
    return {name: (folder / name).read_bytes() for name in ('x.safetensors', 'x.pth', 'old.pth')}


def network(variant: str) -> models.Network:
    """The network that the files belong to."""
    epsilon = 1e-5 if variant == 'timm' else 1e-3
    return xception_flax.create_model(
        'xception', CLASSES, width=WIDTH, variant=variant, bn_epsilon=epsilon
    )


# Damage


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes bytes, whatever they mean: mostly at both ends, where formats describe themselves."""
    found = bytearray(data)
    reach = min(len(found), int(rng.choice([256, 4096, 65536, len(found)])))
    at = int(rng.integers(reach))
    at = len(found) - 1 - at if rng.random() < 0.4 else at
    match rng.integers(6):
        case 0:
            return bytes(found[:at])
        case 1:
            for _ in range(int(rng.integers(1, 64))):
                where = min(len(found) - 1, at + int(rng.integers(64)))
                found[where] ^= 1 << int(rng.integers(8))
        case 2:
            value = int(rng.choice([2**31 - 1, 2**32 - 1, 2**40, 2**62, 0, 1]))
            found[at : at + 8] = value.to_bytes(8, 'little')
        case 3:
            found[at : at + 64] = bytes(64)
        case 4:
            found[at:at] = found[at : at + int(rng.integers(1, 1024))]
        case 5:
            del found[at : at + int(rng.integers(1, 1024))]
    return bytes(found)


def change_hdf5(data: bytes, rng: np.random.Generator) -> bytes:
    """Renames, removes, reshapes and relinks arrays, and declares huge ones."""
    content = io.BytesIO(data)
    with h5py.File(content, 'r+') as file:
        paths: list[str] = []
        file.visititems(lambda p, x: paths.append(p) if isinstance(x, h5py.Dataset) else None)
        groups = sorted({path.rpartition('/')[0] for path in paths})
        for _ in range(int(rng.integers(1, 4))):
            path, group = str(rng.choice(paths)), str(rng.choice(groups))
            if not isinstance(file.get(path), h5py.Dataset) or group not in file:
                continue
            shape = file[path].shape
            match rng.integers(8):
                case 0:
                    del file[path]
                case 1:
                    file.move(group, f'{group}{rng.integers(99)}')
                case 2:
                    del file[path]
                    file[path] = np.zeros(tuple(rng.permutation([*shape, 2]).tolist()))
                case 3:
                    del file[path]
                    huge = (2**20, 2**16)
                    file.create_dataset(path, huge, 'f4', chunks=(1024, 64), fillvalue=1)
                case 4:
                    del file[path]
                    kinds = ['f2', 'i8', '?', 'S5', h5py.string_dtype(), [('a', 'f4')]]
                    file.create_dataset(path, shape, kinds[rng.integers(len(kinds))])
                case 5:
                    del file[path]
                    file[path] = h5py.SoftLink('/')
                case 6:
                    del file[path]
                    file[path] = h5py.ExternalLink('/etc/passwd', '/')
                case 7:
                    owner = file[group]
                    for key in list(owner.attrs):
                        owner.attrs[key] = np.array([b'\xff', b'a/b/c', b''])
    return content.getvalue()


def change_archive(member: str, mutate: Mutate, data: bytes, rng: np.random.Generator) -> bytes:
    """Changes a member of a zip archive, packs another, renames one."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = list(members)
    target = next(name for name in names if name.endswith(member))
    other = str(rng.choice(names))
    match rng.integers(5):
        case 0 | 1:
            members[target] = mutate(members[target], rng)
        case 2:
            members[other] = damage(members[other], rng)
        case 3:
            members[f'{other}{rng.integers(9)}'] = members.pop(other)
        case 4:
            members[other] = bytes(200_000_000)  # packs to 200 kB
    content = io.BytesIO()
    with zipfile.ZipFile(content, 'w') as archive:
        for name, value in members.items():
            packing = zipfile.ZIP_DEFLATED if len(value) > 10**8 else zipfile.ZIP_STORED
            archive.writestr(name, value, packing)
    return content.getvalue()


def change_json(data: bytes, rng: np.random.Generator) -> bytes:
    """Replaces values of a JSON document by others, of any type."""
    document = json.loads(data)
    places: list[tuple] = []

    def visit(node: dict | list) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(value, dict | list):
                visit(value)

    visit(document)
    values = [None, -1, 2**63, 1e308, '', '\x00', [], {}, True, [[]], {'a': 1}, 'relu', [3, 3]]
    for _ in range(int(rng.integers(1, 6))):
        node, key = places[rng.integers(len(places))]
        if isinstance(node, dict) and rng.random() < 0.3:
            node[f'{key}x'] = node.pop(key, None)
        else:
            node[key] = values[rng.integers(len(values))]
    return json.dumps(document).encode()


def change_safetensors(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes the header: names, types, shapes, offsets."""
    size = int.from_bytes(data[:8], 'little')
    header = change_json(data[8 : 8 + size], rng)
    return len(header).to_bytes(8, 'little') + header + data[8 + size :]


CHANGES: dict[str, tuple[Mutate, ...]] = {
    'x.h5': (damage, change_hdf5),
    'x.weights.h5': (damage, change_hdf5),
    'x.keras': (
        damage,
        functools.partial(change_archive, 'model.weights.h5', change_hdf5),
        functools.partial(change_archive, 'config.json', change_json),
    ),
    'x.safetensors': (damage, change_safetensors),
    'x.pth': (damage, functools.partial(change_archive, 'data.pkl', damage)),
    'old.pth': (damage,),
}


# Attempts


@dataclasses.dataclass(frozen=True)
class Ending:
    """How an attempt ended: 'loaded', 'refused' or what is wrong with it; and its memory."""

    kind: str
    detail: str
    memory: float


def attempt(path: pathlib.Path, model: models.Network) -> Ending:
    """Loads a file in a child process."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            answer = _load(path, model)
        except BaseException:  # the child must not go on
            answer = ['traceback', traceback.format_exc()[-2000:], 0]
        os.write(writing, json.dumps(answer).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, 'rb') as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if answer:
        return Ending(*json.loads(answer))
    return Ending('died', f'signal {signal.strsignal(status & 127)}', 0)


def _load(path: pathlib.Path, model: models.Network) -> list:
    """In the child: how it ends."""
    signal.alarm(SECONDS)  # which kills it
    calls: list[str] = []

    def audit(event: str, arguments: tuple) -> None:
        writes = event == 'open' and isinstance(arguments[2], int) and arguments[2] & os.O_WRONLY
        if event in FORBIDDEN or writes:
            calls.append(f'{event} {arguments}'[:200])

    sys.addaudithook(audit)
    before = _resident()
    try:
        xception_flax.load(path, model=model)
        kind, detail = 'loaded', ''
    except UserError as error:
        kind, detail = 'refused', str(error)
        if '\n' in detail or len(detail) > 1000 or not detail.isprintable():
            kind = 'not one line'
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    if calls:
        kind, detail = 'acted', calls[0]
    elif memory > 2 * path.stat().st_size + EXTRA:
        kind = 'memory'
    return [kind, detail, memory]


def _resident() -> int:
    """Bytes of memory that this process has now."""
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE')


def main() -> None:
    """Tries all formats."""
    values = flags.FLAGS
    # Only the weights are of interest: shapes are computed once, and arrays stay on the host.
    models.abstract_variables = functools.cache(models.abstract_variables)
    jax.device_put = lambda tree: tree
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        formats = values.formats or list(CHANGES)
        whole: dict[str, bytes] = {}
        if any('h5' in x or 'keras' in x for x in formats):
            whole |= keras_files(folder)
        if {'x.safetensors', 'x.pth', 'old.pth'} & set(formats):
            whole |= pytorch_files(folder)
        print('| format | files | loaded | refused | otherwise | most memory beyond the file | s |')
        print('|---|---|---|---|---|---|---|')
        for kind in formats:
            model = network('keras' if kind in ('x.h5', 'x.weights.h5', 'x.keras') else 'timm')
            models.abstract_variables(model, SIDE)
            models.abstract_variables(model, 299)
            began, counts, most = time.perf_counter(), collections.Counter(), 0.0
            path = folder / f'tried-{kind}'
            path.write_bytes(whole[kind])
            ending = attempt(path, model)
            assert ending.kind == 'loaded', ending
            for seed in range(values.seed, values.seed + values.count):
                rng = np.random.default_rng(seed)
                changes = CHANGES[kind]
                path.write_bytes(changes[rng.integers(len(changes))](whole[kind], rng))
                ending = attempt(path, model)
                counts[ending.kind] += 1
                most = max(most, ending.memory - path.stat().st_size)
                if ending.kind not in ('loaded', 'refused'):
                    print(f'{kind}, seed {seed}: {ending}', file=sys.stderr)
            others = values.count - counts['loaded'] - counts['refused']
            wrong += others
            print(
                f'| {kind} | {values.count:,} of {len(whole[kind]) / 1e6:.1f} MB | '
                f'{counts["loaded"]:,} | {counts["refused"]:,} | {others:,} | '
                f'{most / 1e6:.1f} MB | {time.perf_counter() - began:.0f} |',
                flush=True,
            )
    sys.exit(bool(wrong))


if __name__ == '__main__':
    program.run(main, alone=True)
