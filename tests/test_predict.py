"""The program that classifies images, with the checkpoint of a short run on real data."""

import json

import cv2
import jax
import numpy as np
import pytest
from helpers import DIGITS

import xception_flax
from xception_flax.data import decoding, images, sources
from xception_flax.models import abstract_variables
from xception_flax.runtime.workdirs import read_classes

PREDICT = ('-m', 'xception_flax.predict')
NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


@pytest.fixture(scope='module')
def run(tmp_path_factory, program):
    """A workdir whose classes have names, and a folder with six of its test images."""
    root = tmp_path_factory.mktemp('predict')
    workdir = root / 'run'
    program(*DIGITS, '--config.eval_steps=24', f'--workdir={workdir}')
    assert read_classes(workdir) == list('0123456789')
    (workdir / 'classes.json').write_text(json.dumps(NAMES))
    folder = root / 'images'
    folder.mkdir()
    (folder / 'notes.txt').write_text('no image')
    source = sources.load(xception_flax.load(workdir).config, 'test')
    for i in range(6):
        whole = cv2.resize(source.images[i], (48, 32), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / f'{i}.png'), whole)
    return workdir, folder


@pytest.fixture(scope='module')
def probabilities(run):
    """The config of the run; and a function from up to ten crops to probabilities, `[N, 10]`."""
    net = xception_flax.load(run[0])
    softmax = jax.jit(lambda x: jax.nn.softmax(net.model.apply(net.variables, x, train=False)))

    def compute(crops):
        x = np.zeros((10, 16, 16, 3))
        x[: len(crops)] = np.asarray(crops) / 127.5 - 1
        return np.asarray(softmax(x))[: len(crops)]

    return net.config, compute


@pytest.fixture(scope='module')
def expected(run, probabilities):
    """Probabilities of the six images, `[6, 10]`."""
    config, compute = probabilities
    whole = [decoding.decode((run[1] / f'{i}.png').read_bytes()) for i in range(6)]
    return compute([images.for_evaluation(image, config) for image in whole])


def lines_of(program, *args, status=0):
    """The lines that the program prints: parsed JSON, and the others."""
    lines = program(*PREDICT, *map(str, args), '--json', status=status).splitlines()
    found = [json.loads(line) for line in lines if line.startswith('{')]
    return found, [line for line in lines if not line.startswith('{')]


def test_a_home_of_nobody_is_an_error(program):
    output = program(
        '-m', 'xception_flax.predict', 'README.md', '--weights=~nobody-of-this-name/x', status=1
    )  # fmt: skip
    assert output.startswith("error: '~nobody-of-this-name/x' is no path")
    assert output.count('\n') == 1


def test_predictions_have_the_accuracy_that_training_reported(run):
    workdir, _ = run
    net = xception_flax.load(workdir)
    source = sources.load(net.config, 'test')
    found = net.predict(list(source.images), top=1)
    right = [one.labels[0].index == label for one, label in zip(found, source.labels, strict=True)]
    last = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])
    assert (last['split'], last['weights'], last['examples']) == ('test', 'averaged', 360)
    assert sum(right) == round(last['top1'] * 360)


def test_json_has_probabilities_and_names_of_classes(run, expected, program):
    workdir, folder = run
    found, others = lines_of(program, folder, f'--workdir={workdir}', '--top=100')
    assert others == []
    assert [one['image'] for one in found] == [str(folder / f'{i}.png') for i in range(6)]
    for one, row in zip(found, expected, strict=True):
        assert [label['index'] for label in one['labels']] == list(np.argsort(-row))
        assert [label['name'] for label in one['labels']] == [NAMES[i] for i in np.argsort(-row)]
        # float32, the batch compiled together with its scaling or without.
        found_row = [label['probability'] for label in one['labels']]
        np.testing.assert_allclose(found_row, np.sort(row)[::-1], atol=1e-5)


def test_a_table_shows_ranks_labels_and_bars_and_bad_images_do_not_end_it(
    run, expected, program, tmp_path
):
    workdir, folder = run
    bad = tmp_path / 'bad.jpg'
    bad.write_bytes(b'\xff\xd8\xff\xe0' + b'\0' * 50)
    png = tmp_path / 'labels.png'
    output = program(
        *PREDICT, str(folder / '0.png'), str(bad), 'nothing.png', str(folder / '3.png'),
        f'--workdir={workdir}', '--top=2', f'--save={png}', status=1, COLUMNS='70',
    )  # fmt: skip
    tables, errors = output.rsplit('\n\n', 1)
    for table, i in zip(tables.split('\n\n'), (0, 3), strict=True):
        name, *lines = table.splitlines()
        assert name == str(folder / f'{i}.png')
        for rank, (line, index) in enumerate(zip(lines, np.argsort(-expected[i])[:2], strict=True)):
            probability = expected[i][index]
            number, label, percent, *bar = line.split()
            assert (int(number), label) == (rank + 1, NAMES[index])
            assert float(percent.rstrip('%')) == pytest.approx(100 * probability, abs=0.051)
            assert len(''.join(bar)) == pytest.approx(20 * probability, abs=1)
    assert errors.splitlines() == [
        'error: there is no file nothing.png',
        f'error: {bad} cannot be read: a damaged JPEG',
    ]
    image = cv2.imread(str(png))
    assert image.shape[1] == round(2 * 3.4 * 120)  # the two in a row
    assert image.std() > 40


def test_a_checkpoint_and_ten_crops_can_be_chosen(run, probabilities, program):
    workdir, folder = run
    found, others = lines_of(
        program, folder / '2.png', f'--workdir={workdir}', '--crops=10', '--step=24', '--top=10'
    )
    assert others == []
    config, compute = probabilities
    whole = decoding.decode((folder / '2.png').read_bytes())
    mean = compute(images.ten_crops(whole, config)).mean(0)
    for label in found[0]['labels']:
        assert label['probability'] == pytest.approx(mean[label['index']], abs=1e-5)


def test_a_thousand_classes_without_names_are_those_of_imagenet(run, program, tmp_path):
    workdir, folder = run
    small = xception_flax.load(workdir)
    model = small.model.clone(num_classes=1000)
    shapes = abstract_variables(model, 16)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    variables['params']['logits']['bias'][281] = 9
    xception_flax.Trained(model, variables, small.config).save(tmp_path / 'weights')
    found, others = lines_of(program, folder / '0.png', f'--weights={tmp_path}/weights', '--top=1')
    assert others == []
    # The logits are the bias: 9 there, 0 elsewhere.
    assert found == [
        {
            'image': str(folder / '0.png'),
            'labels': [
                {
                    'index': 281,
                    'name': 'tabby, tabby cat',
                    'probability': pytest.approx(1 / (1 + 999 * np.exp(-9)), abs=1e-5),
                }
            ],
        }
    ]


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        ([], 'IMAGE is missing'),
        (['cat.png'], 'give either --workdir=DIR or --weights=FILE'),
        (['cat.png', '--workdir=a', '--weights=b'], 'give either --workdir=DIR or --weights=FILE'),
        (['cat.png', '--weights=b', '--step=3'], '--step belongs to --workdir'),
        (['cat.png', '--workdir=a', '--crops=3'], '--crops=3: value should be one of <1|10|144>'),
        (['cat.png', '--workdir=a', '--tpo=3'], "'tpo'. Did you mean: top"),
        (['cat.png', '--workdir=a', '--save=a.jpg'], '--save=a.jpg: give the name of a .png'),
        (['cat.png', '--workdir=a', '--save=no/a.png'], 'there is no folder no'),
        (['cat.png', '--workdir=a', '--save=gs://b/a.png'], '--save: gs://b/a.png is in a bucket'),
        (['cat.png', '--workdir=a'], 'there is no file cat.png'),
        (
            ['tests', '--workdir=a'],
            'tests has no images (.jpg, .jpeg, .jpe, .jfif, .png, .webp, .bmp, .gif, .tif, .tiff)',
        ),
        (['experiments/digits', '--workdir=a'], 'there is no run, no weights file and no'),
        (['cat.png', '--workdir=a', '--config=configs/digits.py'], '--config has no effect'),
    ],
)
def test_mistakes_end_in_one_line(program, args, says):
    output = program(*PREDICT, *args, status=1)
    assert says in output
    assert output.startswith('error: ')
    assert output.count('\n') == 1


def test_help_shows_how_to_use_it(program):
    output = program(*PREDICT, '--help')
    assert 'cat.jpg --workdir=/tmp/imagenet' in output
    for flag in ('workdir', 'weights', 'step', 'top', 'crops', 'save', '[no]json'):
        assert f'--{flag}:' in output
    assert '--coordinator' not in output
