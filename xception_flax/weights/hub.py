"""Models as timm keeps them on the Hugging Face hub: a folder with weights and `config.json`."""

import functools
import importlib.metadata
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from xception_flax.base import extras
from xception_flax.base.errors import UserError
from xception_flax.data import protocols
from xception_flax.models import Network, end_points
from xception_flax.weights import timm_names
from xception_flax.weights.arrays import Said

PREFIX = 'hf-hub:'
CONFIG = 'config.json'
WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
# Mean and standard deviation of pixels in [0, 1], by name in `config.preprocessing`.
STATISTICS = {
    'tf': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    'unit': ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    'torch': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# Architectures by names of older versions.
OLD_NAMES = {
    'xception': 'legacy_xception',
    **dict.fromkeys(('tf_inception_v3', 'adv_inception_v3', 'gluon_inception_v3'), 'inception_v3'),
}
INTERPOLATIONS = {'area': 'box'}  # our name, and timm's, where they differ
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
    huggingface_hub = _library(repository)
    name, _, revision = repository.partition('@')
    download = functools.partial(huggingface_hub.hf_hub_download, name, revision=revision or None)
    try:
        config = download(CONFIG)
        try:
            download(WEIGHTS[0])
        except huggingface_hub.errors.EntryNotFoundError:
            download(WEIGHTS[1])
    except Exception as error:  # of the hub, the network and the disk
        raise UserError(f'{PREFIX}{repository} cannot be fetched ({_reason(error)})') from error
    return pathlib.Path(config).parent


def is_repository(path: pathlib.Path) -> bool:
    """Whether this is a folder with a model of the hub."""
    return path.is_dir() and any((path / file).is_file() for file in WEIGHTS)


def weights_file(folder: pathlib.Path) -> pathlib.Path:
    """The weights in a folder with a model of the hub."""
    return next(folder / file for file in WEIGHTS if (folder / file).is_file())


def read_config(folder: pathlib.Path, architecture: str) -> Said:
    """Reads what `config.json` says of the images, the classes and the network.

    Args:
      folder: with a model of the hub.
      architecture: timm's name of the network that its weights belong to. Others have the same
        arrays, and compute something else.

    Raises:
      UserError: it is not there, or is no configuration of timm.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
        said = _read(config, config.get('pretrained_cfg', config))
        said.problems += _others(config['architecture'], architecture)
        return said
    except FileNotFoundError:
        raise UserError(f'there is no {path}, which says what images the weights expect') from None
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise UserError(f'{path} is no configuration of timm: {error}') from error


def read_architecture(found: str, architecture: str) -> Said:
    """What the name of a network says, as a training program saved it beside the weights."""
    family = re.match(r'(\w+_)?(resnet|xception|inception|vgg)', found)
    return Said(problems=_others(found.partition('.')[0], architecture) if family else [])


def _others(found: str, architecture: str) -> list[str]:
    """That this is the name of another network, if it is."""
    found = OLD_NAMES.get(found, found)
    same = found == architecture
    return [] if same else [f'its network is {found!r}, which is not {architecture!r}']


def _read(config: dict[str, Any], images: dict[str, Any]) -> Said:
    said = Said(settings={'protocol': 'timm'})
    channels, height, width = images['input_size']
    if not (isinstance(height, int) and height == width > 0 and channels == 3):
        said.problems.append(f'it takes images of {images["input_size"]}; here they are [3, S, S]')
    said.settings['image_size'] = height
    crop = said.settings['crop_fraction'] = float(images.get('crop_pct') or 0.875)
    if not 0 < crop <= 1:
        said.problems.append(f'its crop_pct is {crop}')
    interpolation = images.get('interpolation') or 'bilinear'
    ours = {theirs: name for name, theirs in INTERPOLATIONS.items()}
    said.settings['interpolation'] = ours.get(interpolation, interpolation)
    if said.settings['interpolation'] not in protocols.PROTOCOLS['timm'].interpolations:
        said.problems.append(f'its images are resized by {interpolation!r}')
    if (mode := images.get('crop_mode') or 'center') != 'center':
        said.problems.append(f'its images are cropped by {mode!r}, not at the centre')
    statistics = tuple(images['mean']), tuple(images['std'])
    found = [name for name, value in STATISTICS.items() if value == statistics]
    if found:
        said.settings['preprocessing'] = found[0]
    else:
        said.problems.append('pixels have the mean {} and the deviation {}'.format(*statistics))
    whole = {'global_pool': config.get('global_pool') or 'avg', **(config.get('model_args') or {})}
    for name, value in whole.items():
        if name not in ARGUMENTS and value != DEFAULTS.get(name):
            said.problems.append(f'its network was made with {name}={value!r}')
    labels = config.get('label_names') or images.get('label_names') or images.get('labels')
    if isinstance(labels, dict):  # by index, perhaps with gaps
        known = {int(index): str(name) for index, name in labels.items()}
        count = int(config.get('num_classes') or images.get('num_classes') or max(known) + 1)
        labels = [known.get(index, f'class {index}') for index in range(count)]
    if labels:
        said.class_names = tuple(map(str, labels)) if isinstance(labels, list) else (str(labels),)
    return said


def configuration(model: Network, config: Any, class_names: Sequence[str] | None) -> dict[str, Any]:
    """What `config.json` says to timm.

    Raises:
      UserError: timm has no such network, or no such images.
    """
    if config.preprocessing not in STATISTICS:
        raise UserError(
            f'timm has no images of preprocessing={config.preprocessing}, only {list(STATISTICS)}'
        )
    mean, std = STATISTICS[config.preprocessing]
    interpolation = protocols.setting(config, 'interpolation')
    images = {
        'input_size': [3, config.image_size, config.image_size],
        'interpolation': INTERPOLATIONS.get(interpolation, interpolation),
        'crop_pct': protocols.setting(config, 'crop_fraction'),
        'crop_mode': 'center',
        'mean': mean,
        'std': std,
        'num_classes': model.num_classes,
        'custom_load': False,
        'fixed_input_size': config.model == 'vgg16',
    }
    *_, (_, features) = end_points(model).values()
    said = {
        'architecture': timm_names.architecture(config.model, config[config.model]),
        'num_classes': model.num_classes,
        'num_features': [features, *getattr(model, 'fc_layers', ())][-1],
        'global_pool': 'avg',
        'pretrained_cfg': images,
    }
    return said | ({'label_names': list(class_names)} if class_names else {})


def card(
    config: Any,
    said: dict[str, Any],
    parameters: int,
    measured: dict[str, Any] | None,
    notes: Sequence[str],
) -> str:
    """The text of a model card, with what the run measured."""
    images, size = said['pretrained_cfg'], config.image_size
    lines = [
        '---', 'library_name: timm', 'pipeline_tag: image-classification',
        'tags:', '- image-classification', '- timm', '- xception_flax', '---',
        f'# {said["architecture"]}', '',
        f'Trained and written by xception_flax {importlib.metadata.version("xception_flax")}.', '',
        '| | |', '|---|---|',
        f'| classes | {said["num_classes"]:,} |',
        f'| parameters | {parameters:,} |',
        f'| images | {size}x{size}, {images["interpolation"]}, centre {images["crop_pct"]:g} |',
        f'| probabilities | {config.loss} of what it gives |',
        f'| trained on | {config.dataset.name or config.dataset.source} |',
    ]  # fmt: skip
    if measured:
        numbers = ', '.join(
            f'{name} {value:.4f}' for name, value in measured.items() if isinstance(value, float)
        )
        lines += [
            f'| measured on | {measured["split"]}, {measured.get("examples", 0):,} images, '
            f'{config.crops} crop, protocol {config.protocol}, step {measured["step"]:,} |',
            f'| result | {numbers} |',
        ]
    else:
        lines += ['| measured | nothing |']
    for note in notes:
        lines += ['', f'**Differs in timm:** {note}.']
    return '\n'.join(
        [
            *lines,
            '', '```python', 'import timm', '',
            "model = timm.create_model('hf-hub:OWNER/NAME', pretrained=True)  # or local-dir:PATH",
            '```', '',
        ]
    )  # fmt: skip


def upload(folder: pathlib.Path, repository: str) -> str:
    """Uploads a folder as a model; gives its address.

    Args:
      folder: as `Trained.save` writes it.
      repository: OWNER/NAME, which is made if it is not there.

    Raises:
      UserError: huggingface_hub is not installed, or the hub refuses.
    """
    huggingface_hub = _library(repository)
    try:
        api = huggingface_hub.HfApi()
        api.create_repo(repository, exist_ok=True)
        found = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message='Write by xception_flax'
        )
    except Exception as error:  # of the hub and the network
        raise UserError(
            f'{PREFIX}{repository} cannot be written ({_reason(error)}); `hf auth login` logs in'
        ) from error
    return str(found.commit_url)


def _library(repository: str) -> Any:
    with extras.needed('hub', f'{PREFIX}{repository}'):
        import huggingface_hub
    return huggingface_hub


def _reason(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
