"""What is known of weights that others have published: source, licence, pictures, accuracy.

`python -m xception_flax.pretrained` prints it.
"""

import dataclasses
import hashlib
import pathlib

from xception_flax.runtime.errors import UserError, nearest

KERAS = 'https://storage.googleapis.com/tensorflow/keras-applications'


@dataclasses.dataclass(frozen=True)
class Known:
    """Published weights, and the pictures that they expect.

    Attributes:
      network: the network in our registry.
      url: where they are to be had.
      licence: as their publisher says.
      image_size: side of the pictures, in pixels.
      crop_fraction: side of the central crop, of the resized picture's.
      interpolation: how pictures are resized.
      preprocessing: 'tf', 'caffe' or 'torch'.
      top1, top5: accuracy on ImageNet's validation pictures in %, as published; None if we know of
        no such statement.
      md5: of the file, where it is published; only such files are downloaded.
    """

    network: str
    url: str
    licence: str
    image_size: int
    crop_fraction: float
    interpolation: str
    preprocessing: str
    top1: float | None = None
    top5: float | None = None
    md5: str = ''

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.url.rpartition('/')[2]


def _keras(network: str, file: str, md5: str, licence: str, top1: float, top5: float) -> Known:
    large = network in ('xception', 'inception_v3')
    return Known(
        network, f'{KERAS}/{file}', licence, 299 if large else 224, 0.875, 'bilinear',
        'tf' if large else 'caffe', top1, top5, md5,
    )  # fmt: skip


def _timm(
    network: str, name: str, crop: float, top1: float | None = None, top5: float | None = None, *,
    size: int = 299, interpolation: str = 'bicubic', preprocessing: str = 'tf',
    licence: str = 'Apache 2.0',
) -> Known:  # fmt: skip
    url = f'https://huggingface.co/timm/{name}/resolve/main/model.safetensors'
    return Known(network, url, licence, size, crop, interpolation, preprocessing, top1, top5)


_TORCH = {'size': 224, 'preprocessing': 'torch', 'interpolation': 'bilinear'}
_BSD = {**_TORCH, 'licence': 'BSD 3-clause'}

# Keras's figures are from its documentation (single central crop), timm's from its results tables;
# hashes are those in Keras's source, crops and means those in timm's.
KNOWN: dict[str, Known] = {
    'keras/xception': _keras(
        'xception', 'xception/xception_weights_tf_dim_ordering_tf_kernels.h5',
        '0a58e3b7378bc2990ea3b43d5981f1f6', 'MIT', 79.0, 94.5,
    ),
    'keras/xception_notop': _keras(
        'xception', 'xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5',
        'b0042744bf5b25fce3cb969f33bebb97', 'MIT', 79.0, 94.5,
    ),
    'keras/inception_v3': _keras(
        'inception_v3', 'inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels.h5',
        '9a0d58056eeedaa3f26cb7ebd46da564', 'MIT', 77.9, 93.7,
    ),
    'keras/inception_v3_notop': _keras(
        'inception_v3', 'inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5',
        'bcbd6486424b2319ff4ef7d526e38f63', 'MIT', 77.9, 93.7,
    ),
    'keras/vgg16': _keras(
        'vgg16', 'vgg16/vgg16_weights_tf_dim_ordering_tf_kernels.h5',
        '64373286793e3c8b2b4e3219cbf3544b', 'CC BY 4.0', 71.3, 90.1,
    ),
    'keras/vgg16_notop': _keras(
        'vgg16', 'vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5',
        '6d6bbae143d832006294945121d1f1fc', 'CC BY 4.0', 71.3, 90.1,
    ),
    'keras/resnet152': _keras(
        'resnet152', 'resnet/resnet152_weights_tf_dim_ordering_tf_kernels.h5',
        '100835be76be38e30d865e96f2aaae62', 'MIT', 76.6, 93.1,
    ),
    'keras/resnet152_notop': _keras(
        'resnet152', 'resnet/resnet152_weights_tf_dim_ordering_tf_kernels_notop.h5',
        'ee4c566cf9a93f14d82f913c2dc6dd0c', 'MIT', 76.6, 93.1,
    ),
    'timm/legacy_xception.tf_in1k': _timm(
        'xception', 'legacy_xception.tf_in1k', 0.8975, 79.058, 94.396
    ),
    'timm/xception41.tf_in1k': _timm('xception41', 'xception41.tf_in1k', 0.903, 78.55),
    'timm/xception65.tf_in1k': _timm('xception65', 'xception65.tf_in1k', 0.903, 79.56),
    'timm/xception65.ra3_in1k': _timm('xception65', 'xception65.ra3_in1k', 0.94, 83.19),
    'timm/xception71.tf_in1k': _timm('xception71', 'xception71.tf_in1k', 0.903, 79.92),
    'timm/inception_v3.tf_in1k': _timm(
        'inception_v3', 'inception_v3.tf_in1k', 0.875, 77.866, 93.644
    ),
    'timm/inception_v3.tf_adv_in1k': _timm('inception_v3', 'inception_v3.tf_adv_in1k', 0.875),
    'timm/inception_v3.tv_in1k': _timm(
        'inception_v3', 'inception_v3.tv_in1k', 0.875, 77.472, 93.468
    ),
    'timm/inception_v3.gluon_in1k': _timm(
        'inception_v3', 'inception_v3.gluon_in1k', 0.875, 78.806, 94.372, preprocessing='torch'
    ),
    'timm/vgg16.tv_in1k': _timm('vgg16', 'vgg16.tv_in1k', 0.875, **_BSD),
    'timm/vgg16_bn.tv_in1k': _timm('vgg16', 'vgg16_bn.tv_in1k', 0.875, **_BSD),
    'timm/resnet152.tv_in1k': _timm('resnet152', 'resnet152.tv_in1k', 0.875, **_BSD),
    'timm/resnet152.a1_in1k': _timm(
        'resnet152', 'resnet152.a1_in1k', 0.95, **{**_TORCH, 'interpolation': 'bicubic'}
    ),
}  # fmt: skip


def usual(library: str, network: str) -> Known:
    """What a file is taken to be of which only the library and the network are known."""
    same = [k for name, k in KNOWN.items() if name.startswith(library) and k.network == network]
    return same[0]


def find(source: str) -> tuple[pathlib.Path, Known | None]:
    """Finds weights, and what is known of them.

    Args:
      source: a path; or a name of `KNOWN`, for a file that Keras or timm has downloaded already or
        that can be; or NAME=PATH, which says what the file is.

    Raises:
      UserError: there is no such name, or its file is not here.
    """
    name, given, path = source.partition('=')
    if name in KNOWN:
        return pathlib.Path(path).expanduser() if given else _locate(name), KNOWN[name]
    if name.startswith(('keras/', 'timm/')) and not pathlib.Path(source).exists():
        raise UserError(f'there are no weights {name!r}{nearest(name, KNOWN)}')
    found = pathlib.Path(source).expanduser()
    same_file = [known for known in KNOWN.values() if known.md5 and known.file == found.name]
    return found, same_file[0] if same_file else None


def _locate(name: str) -> pathlib.Path:
    """The file of published weights: from Keras's or timm's own cache, or downloaded."""
    known, home = KNOWN[name], pathlib.Path.home()
    if not known.md5:
        hub = home / '.cache/huggingface/hub'
        found = sorted(hub.glob(f'models--{name.replace("/", "--")}/snapshots/*/{known.file}'))
        if found:
            return found[-1]
        raise UserError(f'{name} is not here: get {known.url} and give {name}=PATH')
    path = home / '.keras/models' / known.file
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
    """All that is known, as a Markdown table."""
    lines = ['| name | network | top-1 / top-5 | pictures | licence |', '|---|---|---|---|---|']
    for name, k in KNOWN.items():
        accuracy = ' / '.join('-' if value is None else f'{value:g}' for value in (k.top1, k.top5))
        pictures = f'{k.image_size}, crop {k.crop_fraction:g}, {k.interpolation}, {k.preprocessing}'
        lines.append(f'| `{name}` | {k.network} | {accuracy} | {pictures} | {k.licence} |')
    return '\n'.join(lines)
