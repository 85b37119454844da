"""The studies: what is trained to be compared, and the paper's numbers.

`python -m experiments.sweep STUDY` trains a study, `python -m experiments.report STUDY` shows its
results. The paper's numbers are from its Tables 1 to 3; those of runs that only Figures 9 and 10
show are the last values of their curves, read off the image (`experiments/paper_curves.csv`, about
+-0.002).
"""

from typing import Any

from experiments.studies.study import PaperFigure, Study, Variant, grid
from xception_flax.base.errors import UserError, nearest

ACCURACY = ('top1', 'top5')
FOUR, SIX = tuple(range(4)), tuple(range(6))  # seeds
MAP = ('map100_pictures', 'map100_classes')

XCEPTION = Variant(
    'xception',
    'Xception',
    'configs/imagenet.py',
    paper={'top1': 0.790, 'top5': 0.945, 'parameters': 22_855_952, 'steps_per_second': 28},
)
IMAGENET = Study(
    'ImageNet: the networks of Table 1',
    (
        XCEPTION,
        Variant(
            'inception_v3',
            'Inception V3',
            'configs/imagenet_inception_v3.py',
            paper={'top1': 0.782, 'top5': 0.941, 'parameters': 23_626_728, 'steps_per_second': 31},
        ),
        Variant(
            'resnet152',
            'ResNet-152',
            'configs/imagenet_resnet152.py',
            paper={'top1': 0.770, 'top5': 0.933},
        ),
        Variant(
            'vgg16', 'VGG-16', 'configs/imagenet_vgg16.py', paper={'top1': 0.715, 'top5': 0.901}
        ),
    ),
    ACCURACY,
    1000,
    (PaperFigure('Figure 6', 'fig6', {'xception': 'xception', 'inception_v3': 'inception_v3'}),),
)

RESIDUAL = Study(
    'ImageNet: with and without residual connections',
    (
        XCEPTION,
        Variant(
            'no_residual',
            'Xception without residual connections',
            'configs/imagenet_no_residual.py',
            paper={'top1': 0.672},
        ),
    ),
    ACCURACY,
    1000,
    (PaperFigure('Figure 9', 'fig9', {'xception': 'residual', 'no_residual': 'non_residual'}),),
)

ACTIVATION = Study(
    'ImageNet: an activation between depthwise and pointwise convolution',
    (
        XCEPTION,
        Variant('elu', 'Xception, ELU between', 'configs/imagenet_elu.py', paper={'top1': 0.780}),
        Variant(
            'relu', 'Xception, ReLU between', 'configs/imagenet_relu.py', paper={'top1': 0.7705}
        ),
    ),
    ACCURACY,
    1000,
    (PaperFigure('Figure 10', 'fig10', {'xception': 'none', 'elu': 'elu', 'relu': 'relu'}),),
)

# Open Images in place of JFT, which is not public; the paper's numbers are those on JFT.
FC_LAYERS = Study(
    'Open Images: with and without fully connected layers',
    (
        Variant('open_images', 'Xception', 'configs/open_images.py', paper={'map100': 6.70}),
        Variant(
            'open_images_inception_v3',
            'Inception V3',
            'configs/open_images_inception_v3.py',
            paper={'map100': 6.36},
        ),
        Variant(
            'open_images_fc',
            'Xception, 2 x 4096 FC',
            'configs/open_images_fc.py',
            paper={'map100': 6.78},
        ),
        Variant(
            'open_images_inception_v3_fc',
            'Inception V3, 2 x 4096 FC',
            'configs/open_images_inception_v3_fc.py',
            paper={'map100': 6.50},
        ),
    ),
    MAP,
    None,
    (
        PaperFigure(
            'Figure 7',
            'fig7',
            {'open_images': 'xception', 'open_images_inception_v3': 'inception_v3'},
        ),
        PaperFigure(
            'Figure 8',
            'fig8',
            {'open_images_fc': 'xception_fc', 'open_images_inception_v3_fc': 'inception_v3_fc'},
        ),
    ),
    paper_data='JFT',
)

# The paper gives no batch size; its learning rate is low for the one that its figures suggest.
BATCH_LR = Study(
    'ImageNet: batch and learning rate, 90 epochs',
    grid(
        'configs/imagenet.py',
        {'batch_size': (256, 1024, 4096), 'schedule.learning_rate': (0.045, 0.18, 0.72)},
        overrides={'total_epochs': 90.0},
    ),
    ACCURACY,
    1000,
)


def _fashion(name: str, label: str, top1: float, overrides: dict[str, Any]) -> Variant:
    overrides = {'xception.middle_repeats': 3} | overrides
    return Variant(name, label, 'configs/fashion_mnist.py', overrides, (0, 1, 2), {'top1': top1})


def _small_inception(width: float, dropout: float) -> dict[str, Any]:
    return {
        'model': 'inception_v3',
        'inception_v3.stem': 'small',
        'inception_v3.width': width,
        'inception_v3.bn_momentum': 0.9,
        'inception_v3.dropout': dropout,
    }


SMALL_FIGURES = (
    PaperFigure('Like Figure 6', '', {'xception': '', 'inception_v3': ''}),
    PaperFigure('Like Figure 9', '', {'xception': '', 'no_residual': ''}),
    PaperFigure('Like Figure 10', '', {'xception': '', 'elu': '', 'relu': ''}),
)

# One recipe and one size for all: Xception has 210,330 parameters, Inception V3 211,226, Xception
# without residual connections (and so without their projections) 195,082.
FASHION_MNIST = Study(
    'Fashion-MNIST: the comparisons of the paper, small',
    (
        _fashion('xception', 'Xception', 0.790, {}),
        _fashion('inception_v3', 'Inception V3', 0.782, _small_inception(0.094, 0.2)),
        _fashion(
            'no_residual',
            'Xception without residual connections',
            0.672,
            {'xception.residual': False},
        ),
        _fashion('elu', 'Xception, ELU between', 0.780, {'xception.intermediate': 'elu'}),
        _fashion('relu', 'Xception, ReLU between', 0.7705, {'xception.intermediate': 'relu'}),
    ),
    ACCURACY,
    10,
    SMALL_FIGURES,
    paper_data='ImageNet',
)


def _tiny(
    name: str, label: str, top1: float, overrides: dict[str, Any], seeds: tuple[int, ...]
) -> Variant:
    return Variant(name, label, 'configs/tiny_imagenet.py', overrides, seeds, {'top1': top1})


# experiments/tiny_imagenet/DESIGN.md: 657,480 parameters within half a percent, one recipe.
TINY_IMAGENET = Study(
    'Tiny ImageNet: the comparisons of the paper, on natural images',
    (
        _tiny('xception', 'Xception', 0.790, {}, SIX),
        _tiny('inception_v3', 'Inception V3', 0.782, _small_inception(0.164, 0.0), SIX),
        _tiny(
            'no_residual',
            'Xception without residual connections',
            0.672,
            {'xception.residual': False, 'xception.width': 0.17},
            FOUR,
        ),
        _tiny('elu', 'Xception, ELU between', 0.780, {'xception.intermediate': 'elu'}, FOUR),
        _tiny('relu', 'Xception, ReLU between', 0.7705, {'xception.intermediate': 'relu'}, FOUR),
    ),
    ACCURACY,
    200,
    SMALL_FIGURES,
    paper_data='ImageNet',
    held_out='the published validation images',
)

STUDIES = {
    'imagenet': IMAGENET,
    'residual': RESIDUAL,
    'activation': ACTIVATION,
    'fc_layers': FC_LAYERS,
    'batch_lr': BATCH_LR,
    'fashion_mnist': FASHION_MNIST,
    'tiny_imagenet': TINY_IMAGENET,
}


def lookup(name: str) -> Study:
    """The study of that name.

    Raises:
      UserError: there is no such study.
    """
    if name not in STUDIES:
        raise UserError(f'there is no study {name!r}{nearest(name, [*STUDIES, "grid"])}')
    return STUDIES[name]
