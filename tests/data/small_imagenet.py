"""A small ImageNet, as it lies on people's disks: by the programs that make those copies."""

import gzip
import io
import pathlib
import tarfile

import cv2
import numpy as np
import scipy.io
import webdataset as wds

from xception_flax.data.imagenet_sets import imagenet_classes

WNIDS = ('n01440764', 'n02123045', 'n04285008')
NUMBERS = (0, 281, 817)
# The first classes of the validation split, in ImageNet's own order.
VALIDATION = ('n01751748', 'n09193705', 'n02105855', 'n04263257')


def jpeg(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(60, 120, 2)
    image = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (int(width), int(height)))
    return cv2.imencode('.jpg', image)[1].tobytes()


# Ten is before two by name: the order is that of the names.
TRAIN = {f'{w}_{i}.JPEG': jpeg(10 * n + i) for n, w in enumerate(WNIDS) for i in (2, 10, 7)}
VAL = {f'ILSVRC2012_val_{i:08}.JPEG': jpeg(100 + i) for i in range(1, len(VALIDATION) + 1)}
CLASS = {name: NUMBERS[WNIDS.index(name[:9])] for name in TRAIN} | {
    name: list(imagenet_classes()).index(wnid) for name, wnid in zip(VAL, VALIDATION, strict=True)
}
SPLITS = {'train': TRAIN, 'validation': VAL}


def tar_of(files) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode='w') as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def write(root: pathlib.Path, files) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def of_class(wnid):
    return {name: data for name, data in TRAIN.items() if name.startswith(wnid)}


def two_tars(root):
    inner = {f'{wnid}.tar': tar_of(of_class(wnid)) for wnid in reversed(WNIDS)}
    write(root, {'ILSVRC2012_img_train.tar': tar_of(inner), 'ILSVRC2012_img_val.tar': tar_of(VAL)})


def train_folders(root):
    write(root / 'train', {f'{name[:9]}/{name}': data for name, data in TRAIN.items()})


def folders(root):
    train_folders(root)
    names = list(zip(VAL.items(), VALIDATION, strict=True))
    write(root / 'val', {f'{wnid}/{name}': data for (name, data), wnid in names})


def flat_with_devkit(root, packed=True):
    train_folders(root)
    write(root / 'val', VAL)
    # The kit's own numbers: not those of the sorted ids; inner nodes of the tree come last.
    ids = {wnid: 1000 - i for i, wnid in enumerate(imagenet_classes())}
    fields = [('ILSVRC2012_ID', 'O'), ('WNID', 'O'), ('words', 'O'), ('num_children', 'O')]
    rows = [(number, wnid, 'a word', 0) for wnid, number in ids.items()]
    rows.append((1001, 'n00001740', 'entity', 3))
    meta = io.BytesIO()
    scipy.io.savemat(meta, {'synsets': np.array(rows, fields).reshape(-1, 1)})
    kit = 'ILSVRC2012_devkit_t12'
    files = {
        f'{kit}/data/meta.mat': meta.getvalue(),
        f'{kit}/data/ILSVRC2012_validation_ground_truth.txt': ''.join(
            f'{ids[wnid]}\n' for wnid in VALIDATION
        ).encode(),
    }
    write(root, {f'{kit}.tar.gz': gzip.compress(tar_of(files))} if packed else files)


def flat_with_unpacked_devkit(root):
    flat_with_devkit(root, packed=False)


def kaggle(root):
    lower = root / 'ILSVRC' / 'Data' / 'CLS-LOC'
    train_folders(lower)
    write(lower / 'val', VAL)
    write(lower / 'test', {'ILSVRC2012_test_00000001.JPEG': jpeg(0)})
    names = list(zip(VAL, VALIDATION, strict=True))[::-1]
    rows = ''.join(f'{name[:-5]},{wnid} 85 1 499 272 {wnid} 1 2 3 4\n' for name, wnid in names)
    write(root, {'LOC_val_solution.csv': f'ImageId,PredictionString\n{rows}'.encode()})


def tars_of_classes(root):
    """The outer tar unpacked, the inner ones not."""
    write(root / 'train', {f'{wnid}.tar': tar_of(of_class(wnid)) for wnid in WNIDS})
    write(root, {'ILSVRC2012_img_val.tar': tar_of(VAL)})


def shuffled(files):
    names = list(files)
    return [names[i] for i in np.random.default_rng(0).permutation(len(names))]


def webdataset(root, metadata='cls'):
    """As the hub's copy of timm has it: tars of KEY.cls, KEY.jpg, KEY.json."""
    root.mkdir()
    for split, pattern in (('train', 'train-%04d'), ('validation', 'validation-%02d')):
        with wds.ShardWriter(f'{root}/imagenet1k-{pattern}.tar', maxcount=3, verbose=0) as shards:
            for name in shuffled(SPLITS[split]):
                sample = {'__key__': name[:-5], 'jpg': SPLITS[split][name]}
                if metadata == 'cls':
                    sample['cls'] = CLASS[name]
                else:
                    sample['json'] = {'label': CLASS[name], 'filename': f'x/{name}', 'width': 9}
                shards.write(sample)


def webdataset_json(root):
    webdataset(root, 'json')


def slim(root):
    """TFRecords of TF-slim's and the TPU models' converters, which count from 1."""
    import tensorflow as tf

    def feature(value):
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        if isinstance(value, float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=[value, value]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    root.mkdir()
    for split, files in SPLITS.items():
        names = shuffled(files)
        for shard in range(2):
            path = root / f'{split}-{shard:05}-of-00002'
            with tf.io.TFRecordWriter(str(path)) as writer:
                for name in names[shard::2]:
                    values = {
                        'image/height': 100, 'image/width': 80, 'image/colorspace': b'RGB',
                        'image/class/label': CLASS[name] + 1, 'image/class/text': b'words',
                        'image/object/bbox/xmin': 0.25, 'image/format': b'JPEG',
                        'image/filename': name.encode(), 'image/encoded': files[name],
                    }  # fmt: skip
                    features = {key: feature(value) for key, value in values.items()}
                    features['image/object/bbox/ymin'] = tf.train.Feature(
                        float_list=tf.train.FloatList()
                    )
                    example = tf.train.Example(features=tf.train.Features(feature=features))
                    writer.write(example.SerializeToString())


LAYOUTS = (
    two_tars, folders, flat_with_devkit, flat_with_unpacked_devkit, kaggle, tars_of_classes,
    webdataset, webdataset_json, slim,
)  # fmt: skip


def records(source):
    return [(source.name(i).rpartition('/')[2], source[i]) for i in range(len(source))]


def check(source, split):
    files = SPLITS[split]
    found = records(source)
    assert [name for name, _ in found] == sorted(files)
    for name, record in found:
        assert record['image'] == files[name]
        assert record['label'] == CLASS[name]
    assert list(source.class_names) == list(imagenet_classes())
