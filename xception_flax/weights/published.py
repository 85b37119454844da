"""Weights that others have published: source, licence, expected images, accuracy.

`python -m xception_flax.convert --list` prints them.
"""

import dataclasses
import hashlib
import pathlib
from typing import Any

from xception_flax.base import paths
from xception_flax.base.errors import UserError, nearest
from xception_flax.weights import hub

KERAS = 'https://storage.googleapis.com/tensorflow/keras-applications'
TIMM = 'https://huggingface.co/timm'


@dataclasses.dataclass(frozen=True)
class Published:
    """Published weights, and the images that they expect.

    Attributes:
      name: 'keras/...' or 'timm/...'.
      network: the network in our registry.
      licence: as their publisher says.
      protocol: how images are cropped and resized (`data.protocols`).
      image_size: side of the images, in pixels.
      crop_fraction: side of the central crop, as a fraction of the image's.
      interpolation: how images are resized.
      preprocessing: 'tf', 'caffe' or 'torch'.
      top1, top5: accuracy on ImageNet's validation images in %, as published; None if we know of
        no such statement.
      path: the file, below the publisher's folder.
      md5: of the file, where it is published; only such files are downloaded.
    """

    name: str
    network: str
    licence: str
    protocol: str
    image_size: int
    crop_fraction: float
    interpolation: str
    preprocessing: str
    top1: float | None = None
    top5: float | None = None
    path: str = 'model.safetensors'
    md5: str = ''

    @property
    def library(self) -> str:
        """'keras' or 'timm'."""
        return self.name.partition('/')[0]

    @property
    def url(self) -> str:
        """Where the file is published."""
        library, _, name = self.name.partition('/')
        folder = KERAS if library == 'keras' else f'{TIMM}/{name}/resolve/main'
        return f'{folder}/{self.path}'

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.path.rpartition('/')[2]


# Accuracies: the documentation of Keras (single central crop) and the results tables of timm.
# Hashes: the source of Keras. Crops, interpolation and preprocessing: the source of timm. How Keras
# measured is not published: for its own two networks we take TensorFlow's evaluation of Inception.
_TABLE: tuple[tuple[Any, ...], ...] = (
    ('keras/xception', 'xception', 'MIT', 'inception', 299, 0.875, 'bilinear', 'tf', 79.0, 94.5,
     'xception/xception_weights_tf_dim_ordering_tf_kernels.h5',
     '0a58e3b7378bc2990ea3b43d5981f1f6'),
    ('keras/xception_notop', 'xception', 'MIT', 'inception', 299, 0.875, 'bilinear', 'tf', 79.0,
     94.5, 'xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5',
     'b0042744bf5b25fce3cb969f33bebb97'),
    ('keras/inception_v3', 'inception_v3', 'MIT', 'inception', 299, 0.875, 'bilinear', 'tf',
     77.9, 93.7, 'inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels.h5',
     '9a0d58056eeedaa3f26cb7ebd46da564'),
    ('keras/inception_v3_notop', 'inception_v3', 'MIT', 'inception', 299, 0.875, 'bilinear',
     'tf', 77.9, 93.7, 'inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5',
     'bcbd6486424b2319ff4ef7d526e38f63'),
    ('keras/vgg16', 'vgg16', 'CC BY 4.0', 'opencv', 224, 0.875, 'bilinear', 'caffe', 71.3, 90.1,
     'vgg16/vgg16_weights_tf_dim_ordering_tf_kernels.h5', '64373286793e3c8b2b4e3219cbf3544b'),
    ('keras/vgg16_notop', 'vgg16', 'CC BY 4.0', 'opencv', 224, 0.875, 'bilinear', 'caffe', 71.3,
     90.1, 'vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5',
     '6d6bbae143d832006294945121d1f1fc'),
    ('keras/resnet152', 'resnet152', 'MIT', 'opencv', 224, 0.875, 'bilinear', 'caffe', 76.6,
     93.1, 'resnet/resnet152_weights_tf_dim_ordering_tf_kernels.h5',
     '100835be76be38e30d865e96f2aaae62'),
    ('keras/resnet152_notop', 'resnet152', 'MIT', 'opencv', 224, 0.875, 'bilinear', 'caffe',
     76.6, 93.1, 'resnet/resnet152_weights_tf_dim_ordering_tf_kernels_notop.h5',
     'ee4c566cf9a93f14d82f913c2dc6dd0c'),
    ('timm/legacy_xception.tf_in1k', 'xception', 'Apache 2.0', 'timm', 299, 0.8975, 'bicubic',
     'tf', 79.058, 94.396),
    ('timm/xception41.tf_in1k', 'xception41', 'Apache 2.0', 'timm', 299, 0.903, 'bicubic', 'tf',
     78.55),
    ('timm/xception65.tf_in1k', 'xception65', 'Apache 2.0', 'timm', 299, 0.903, 'bicubic', 'tf',
     79.56),
    ('timm/xception65.ra3_in1k', 'xception65', 'Apache 2.0', 'timm', 299, 0.94, 'bicubic', 'tf',
     83.19),
    ('timm/xception71.tf_in1k', 'xception71', 'Apache 2.0', 'timm', 299, 0.903, 'bicubic', 'tf',
     79.92),
    ('timm/inception_v3.tf_in1k', 'inception_v3', 'Apache 2.0', 'timm', 299, 0.875, 'bicubic',
     'tf', 77.866, 93.644),
    ('timm/inception_v3.tf_adv_in1k', 'inception_v3', 'Apache 2.0', 'timm', 299, 0.875,
     'bicubic', 'tf'),
    ('timm/inception_v3.tv_in1k', 'inception_v3', 'Apache 2.0', 'timm', 299, 0.875, 'bicubic',
     'tf', 77.472, 93.468),
    ('timm/inception_v3.gluon_in1k', 'inception_v3', 'Apache 2.0', 'timm', 299, 0.875,
     'bicubic', 'torch', 78.806, 94.372),
    ('timm/vgg16.tv_in1k', 'vgg16', 'BSD 3-clause', 'timm', 224, 0.875, 'bilinear', 'torch'),
    ('timm/vgg16_bn.tv_in1k', 'vgg16', 'BSD 3-clause', 'timm', 224, 0.875, 'bilinear', 'torch'),
    ('timm/resnet152.tv_in1k', 'resnet152', 'BSD 3-clause', 'timm', 224, 0.875, 'bilinear',
     'torch'),
    ('timm/resnet152.a1_in1k', 'resnet152', 'Apache 2.0', 'timm', 224, 0.95, 'bicubic',
     'torch'),
)  # fmt: skip
PUBLISHED = {row[0]: Published(*row) for row in _TABLE}


def usual(library: str, network: str) -> Published:
    """What a file is taken for, of which only the library and the network are known."""
    return next(
        known
        for name, known in PUBLISHED.items()
        if name.startswith(library) and known.network == network
    )


def find(source: str) -> tuple[paths.Path, Published | None]:
    """Finds a weights file or the folder of a run, and what is known of published weights.

    Args:
      source: a path; 'hf-hub:OWNER/NAME', or a name of `PUBLISHED`, whose files are taken from the
        cache of Keras or of the hub, or downloaded; or NAME=PATH, which says what the file is.

    Raises:
      UserError: there is no such name, or its file is not on this machine.
    """
    name, given, path = source.partition('=')
    if name in PUBLISHED:
        return paths.path(path) if given else _locate(name), PUBLISHED[name]
    if source.startswith(hub.PREFIX):
        return hub.fetch(source.removeprefix(hub.PREFIX)), None
    if name.startswith(('keras/', 'timm/')) and not pathlib.Path(source).exists():
        raise UserError(f'there are no weights {name!r}{nearest(name, PUBLISHED)}')
    try:
        found = paths.path(source)
        with paths.errors(found):
            found.exists()
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f'{source!r} is no path: {error}') from error
    same_file = [known for known in PUBLISHED.values() if known.md5 and known.file == found.name]
    return found, same_file[0] if same_file else None


def _locate(name: str) -> pathlib.Path:
    """The file of published weights, or the folder of those on the hub."""
    known = PUBLISHED[name]
    if not known.md5:
        return hub.fetch(name)
    path = pathlib.Path.home() / '.keras/models' / known.file
    if not path.is_file():
        import pooch  # slow to import

        try:
            pooch.retrieve(known.url, f'md5:{known.md5}', known.file, path.parent, progressbar=True)
        except Exception as error:  # whatever the network has to say
            raise UserError(
                f'{name} cannot be downloaded ({type(error).__name__}); get {known.url} and give '
                'the path of the file'
            ) from error
    if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != known.md5:
        raise UserError(f'{path} is not what was published (its MD5 differs); remove it')
    return path


def table() -> str:
    """All published weights, as a Markdown table."""
    lines = ['| name | network | top-1 / top-5 | images | licence |', '|---|---|---|---|---|']
    for name, k in PUBLISHED.items():
        accuracy = ' / '.join('-' if value is None else f'{value:g}' for value in (k.top1, k.top5))
        images = f'{k.image_size}, {k.protocol} {k.crop_fraction:g}, {k.interpolation}'
        images = f'{images}, {k.preprocessing}'
        lines.append(f'| `{name}` | {k.network} | {accuracy} | {images} | {k.licence} |')
    return '\n'.join(lines)
