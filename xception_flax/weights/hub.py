"""Models as timm keeps them on the Hugging Face hub: a folder with weights and `config.json`."""

import json
import pathlib
from typing import Any

from xception_flax.base.errors import UserError
from xception_flax.weights.arrays import Said

PREFIX = 'hf-hub:'
CONFIG = 'config.json'
WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
INSTALL = "pip install 'huggingface_hub'"
# Mean and standard deviation of pixels in [0, 1], by name in `config.preprocessing`.
STATISTICS = {
    'tf': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    'unit': ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    'torch': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# Arguments of timm's networks that change nothing at inference, or that arrays tell.
ARGUMENTS = ('num_classes', 'drop_rate', 'drop_path_rate', 'aux_logits')
DEFAULTS = {'in_chans': 3, 'global_pool': 'avg', 'output_stride': 32}


def fetch(repository: str) -> pathlib.Path:
    """Fetches a model into the cache of huggingface_hub (HF_HOME, HF_HUB_CACHE).

    Args:
      repository: OWNER/NAME, or OWNER/NAME@REVISION.

    Returns:
      The folder with its files.

    Raises:
      UserError: huggingface_hub is not installed, or there is no such model.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise UserError(f'{PREFIX}{repository} needs huggingface_hub: {INSTALL}') from None
    name, _, revision = repository.partition('@')
    try:
        config = huggingface_hub.hf_hub_download(name, CONFIG, revision=revision or None)
        for file in WEIGHTS:
            try:
                huggingface_hub.hf_hub_download(name, file, revision=revision or None)
                break
            except EntryNotFoundError:
                if file == WEIGHTS[-1]:
                    raise
    except Exception as error:  # of the hub, the network and the disk
        reason = ' '.join(str(error).split())[:200]
        raise UserError(
            f'{PREFIX}{repository} cannot be fetched ({type(error).__name__}: {reason})'
        ) from error
    return pathlib.Path(config).parent


def is_repository(path: pathlib.Path) -> bool:
    """Whether this is a folder with a model of the hub."""
    return path.is_dir() and any((path / file).is_file() for file in WEIGHTS)


def weights_file(folder: pathlib.Path) -> pathlib.Path:
    """The weights in a folder with a model of the hub."""
    return next(folder / file for file in WEIGHTS if (folder / file).is_file())


def read_config(folder: pathlib.Path) -> Said:
    """Reads what `config.json` says of the images, the classes and the network.

    Raises:
      UserError: it is not there, or is no configuration of timm.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
        images = config.get('pretrained_cfg', config)
        return _read(config, images)
    except FileNotFoundError:
        raise UserError(f'there is no {path}, which says what images the weights expect') from None
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise UserError(f'{path} is no configuration of timm: {error}') from error


def _read(config: dict[str, Any], images: dict[str, Any]) -> Said:
    said = Said(settings={'protocol': 'timm'})
    _, height, width = images['input_size']
    if height != width:
        said.problems.append(f'it takes images of {height}x{width}; networks here take squares')
    said.settings['image_size'] = height
    said.settings['crop_fraction'] = float(images.get('crop_pct') or 0.875)
    said.settings['interpolation'] = images.get('interpolation', 'bilinear')
    if (mode := images.get('crop_mode') or 'center') != 'center':
        said.problems.append(f'its images are cropped by {mode!r}, not at the centre')
    statistics = tuple(images['mean']), tuple(images['std'])
    found = [name for name, value in STATISTICS.items() if value == statistics]
    if found:
        said.settings['preprocessing'] = found[0]
    else:
        said.problems.append('pixels have the mean {} and the deviation {}'.format(*statistics))
    for name, value in (config.get('model_args') or {}).items():
        if name not in ARGUMENTS and value != DEFAULTS.get(name):
            said.problems.append(f'its network was made with {name}={value!r}')
    labels = config.get('label_names') or images.get('label_names') or images.get('labels')
    if labels:
        names = labels.values() if isinstance(labels, dict) else labels
        said.class_names = tuple(str(name) for name in names)
    return said
