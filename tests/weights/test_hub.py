"""Models of the Hugging Face hub: written for timm, fetched from and uploaded to a local server."""

import base64
import http.server
import json
import pathlib
import re
import threading

import cv2
import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import default_config, random_variables

import xception_flax
from xception_flax.base.errors import UserError
from xception_flax.weights import hub

NAMES = ('ant', 'bee', 'cat')


@pytest.fixture(scope='module')
def net():
    model = xception_flax.create_model('xception', 3, variant='timm', bn_epsilon=1e-5)
    config = default_config(
        image_size=71, preprocessing='torch', crop_fraction=0.9, interpolation='area'
    )
    config.dataset.name = 'insects'
    measured = {
        'step': 7, 'split': 'val', 'weights': 'averaged', 'top1': 0.5, 'examples': 1234,
    }  # fmt: skip
    return xception_flax.Trained(model, random_variables(model, 71), config, NAMES, measured)


@pytest.fixture(scope='module')
def folder(net, tmp_path_factory):
    path = tmp_path_factory.mktemp('hub') / 'net'
    net.save(path, for_hub=True)
    return path


def test_a_folder_is_read_as_it_was_written(net, folder):
    loaded = xception_flax.load(folder)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, net.variables)
    assert loaded.class_names == NAMES
    config = loaded.config
    assert (config.image_size, config.protocol, config.preprocessing) == (71, 'timm', 'torch')
    assert (config.crop_fraction, config.interpolation) == (0.9, 'area')


def test_the_configuration_is_what_timm_writes(folder):
    """The keys and values of timm 1.0.31's `save_for_hf` for the same network, as recorded.

    timm itself made this network from such a folder, with `local-dir:`: its logits were the same to
    7e-7 of the largest (and of ResNet-50, Inception V3 and Xception-65 to 3e-6; 2026-11-26).
    """
    config = json.loads((folder / 'config.json').read_text())
    images = config.pop('pretrained_cfg')
    assert config == {
        'architecture': 'legacy_xception', 'num_classes': 3, 'num_features': 2048,
        'global_pool': 'avg', 'label_names': ['ant', 'bee', 'cat'],
    }  # fmt: skip
    assert images == {
        'input_size': [3, 71, 71], 'interpolation': 'box', 'crop_pct': 0.9, 'crop_mode': 'center',
        'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225], 'num_classes': 3,
        'custom_load': False, 'fixed_input_size': False,
    }  # fmt: skip


def test_the_card_has_the_numbers_of_the_run(folder):
    card = (folder / 'README.md').read_text()
    assert card.startswith('---\nlibrary_name: timm\n')
    assert '| measured on | val, 1,234 images, 1 crop, protocol opencv, step 7 |' in card
    assert '| result | top1 0.5000 |' in card
    assert '| trained on | insects |' in card


def test_the_card_says_what_differs_in_timm(tmp_path):
    model = xception_flax.create_model('xception', 3)
    net = xception_flax.Trained(model, random_variables(model, 71), default_config(image_size=71))
    net.save(tmp_path / 'net', for_hub=True)
    card = (tmp_path / 'net' / 'README.md').read_text()
    assert "**Differs in timm:** timm's network has max pools of symmetric padding" in card
    assert '| measured | nothing |' in card


@pytest.mark.parametrize(
    ('settings', 'options', 'says'),
    [
        ({'preprocessing': 'caffe'}, {}, 'timm has no images of preprocessing=caffe'),
        ({'model': 'alexnet'}, {}, 'timm has no alexnet'),
        ({'model': 'resnet152'}, {'stages': (1, 1, 1, 1)}, r'no ResNet of stages \(1, 1, 1, 1\)'),
    ],
)
def test_what_timm_does_not_have_is_an_error(settings, options, says, tmp_path):
    config = default_config(**settings)
    model = xception_flax.create_model(config.model, 3, **options)
    with pytest.raises(UserError, match=says):
        xception_flax.Trained(model, {}, config).save(tmp_path / 'net', for_hub=True)
    assert not list(tmp_path.iterdir())


TIMM = {  # as timm writes it
    'architecture': 'legacy_xception', 'num_classes': 3, 'model_args': {'num_classes': 3},
    'pretrained_cfg': {
        'input_size': [3, 299, 299], 'interpolation': 'bicubic', 'crop_pct': 0.8975,
        'crop_mode': 'center', 'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5],
    },
}  # fmt: skip


def said(tmp_path, config):
    (tmp_path / 'config.json').write_text(json.dumps(config))
    return hub.read_config(tmp_path, 'legacy_xception')


def test_a_configuration_of_timm_is_read(tmp_path):
    expected = {
        'protocol': 'timm', 'image_size': 299, 'crop_fraction': 0.8975, 'interpolation': 'bicubic',
        'preprocessing': 'tf',
    }  # fmt: skip
    found = said(tmp_path, TIMM)
    assert (found.settings, found.problems, found.class_names) == (expected, [], None)
    old = {'architecture': 'legacy_xception', 'labels': ['a', 'b']} | TIMM['pretrained_cfg']
    found = said(tmp_path, old)  # before timm 0.9
    assert (found.settings, found.problems, found.class_names) == (expected, [], ('a', 'b'))


@pytest.mark.parametrize(
    ('images', 'arguments', 'problem'),
    [
        ({'crop_mode': 'squash'}, {}, "cropped by 'squash'"),
        ({'interpolation': 'hamming'}, {}, "resized by 'hamming'"),
        ({'mean': [0.48, 0.46, 0.41]}, {}, 'pixels have the mean'),
        ({'input_size': [3, 224, 299]}, {}, 'images of [3, 224, 299]'),
        ({}, {'global_pool': 'max'}, "made with global_pool='max'"),
        ({}, {'in_chans': 1}, 'made with in_chans=1'),
        ({'input_size': [3, '224', '224']}, {}, 'here they are [3, S, S]'),
        ({'input_size': [1, 224, 224]}, {}, 'here they are [3, S, S]'),
        ({'crop_pct': 2.0}, {}, 'its crop_pct is 2.0'),
    ],
)
def test_what_no_network_here_does_is_a_problem(images, arguments, problem, tmp_path):
    config = TIMM | {'pretrained_cfg': TIMM['pretrained_cfg'] | images, 'model_args': arguments}
    (found,) = said(tmp_path, config).problems
    assert problem in found


@pytest.mark.parametrize(
    ('name', 'problem'), [('xception', ''), ('resnetaa50', "its network is 'resnetaa50'")]
)
def test_other_networks_with_the_same_arrays_are_a_problem(name, problem, tmp_path):
    found = said(tmp_path, TIMM | {'architecture': name}).problems
    assert bool(found) == bool(problem)
    assert problem in ' '.join(found)


def test_a_folder_without_a_configuration_is_an_error(tmp_path):
    safetensors.numpy.save_file({'fc.weight': np.zeros(3)}, tmp_path / 'model.safetensors')
    with pytest.raises(UserError, match='none of the networks here'):
        xception_flax.load(tmp_path)
    with pytest.raises(UserError, match=r'config\.json, which says what images'):
        hub.read_config(tmp_path, 'resnet50')
    (tmp_path / 'config.json').write_text('[1]')
    with pytest.raises(UserError, match='is no configuration of timm'):
        hub.read_config(tmp_path, 'resnet50')


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub, for models in `root/OWNER/NAME`."""

    root: pathlib.Path
    COMMIT = '0123456789abcdef0123456789abcdef01234567'

    def log_message(self, *_):
        pass

    def answer(self, status, body=b'', **headers):
        self.send_response(status)
        for name, value in {'Content-Length': len(body), **headers}.items():
            self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def answer_json(self, value):
        self.answer(200, json.dumps(value).encode(), Content_Type='application/json')

    def do_GET(self):
        match = re.fullmatch(r'/(\w+/\w+)/resolve/([^/]+)/(.+)', self.path)
        if not match or not (self.root / match[1]).is_dir():
            return self.answer(404, X_Error_Code='RepoNotFound')
        if match[2] not in ('main', self.COMMIT):
            return self.answer(404, X_Error_Code='RevisionNotFound')
        file = self.root / match[1] / match[3]
        if not file.is_file():
            return self.answer(404, X_Error_Code='EntryNotFound', X_Repo_Commit=self.COMMIT)
        tag = f'"{file.stat().st_size}-{file.name}"'
        return self.answer(200, file.read_bytes(), ETag=tag, X_Repo_Commit=self.COMMIT)

    do_HEAD = do_GET  # noqa: N815

    def body(self):
        if 'chunked' not in self.headers.get('Transfer-Encoding', ''):
            return self.rfile.read(int(self.headers.get('Content-Length', 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b''.join(chunks)

    def do_POST(self):
        body = self.body()
        address = f'http://{self.headers["Host"]}'
        if self.headers.get('Authorization') != 'Bearer hf_secret':
            return self.answer(401)
        if self.path == '/api/repos/create':
            asked = json.loads(body)
            name = f'{asked.get("organization") or "me"}/{asked["name"]}'
            (self.root / name).mkdir(parents=True, exist_ok=True)
            return self.answer_json({'url': f'{address}/{name}'})
        if self.path.endswith('/preupload/main'):
            files = json.loads(body)['files']
            modes = {'uploadMode': 'regular', 'shouldIgnore': False}
            return self.answer_json({'files': [{'path': f['path'], **modes} for f in files]})
        if match := re.fullmatch(r'/api/models/(\w+/\w+)/commit/main', self.path):
            for line in body.splitlines():
                item = json.loads(line)
                if item['key'] == 'file':
                    data = base64.b64decode(item['value']['content'])
                    (self.root / match[1] / item['value']['path']).write_bytes(data)
            address = f'{address}/{match[1]}/commit/{self.COMMIT}'
            return self.answer_json({'commitOid': self.COMMIT, 'commitUrl': address})
        return self.answer_json({})


@pytest.fixture
def server(tmp_path):
    """The folder of the models, and settings for huggingface_hub."""
    handler = type('Handler', (Hub,), {'root': tmp_path / 'served'})
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{running.server_address[1]}'
        home = str(tmp_path / 'home')
        yield (
            tmp_path / 'served',
            {'HF_ENDPOINT': address, 'HF_HOME': home, 'HF_TOKEN': 'hf_secret'},
        )
        running.shutdown()


@pytest.mark.slow
def test_a_model_is_uploaded_fetched_and_found_again(server, folder, program, tmp_path):
    served, env = server
    convert, predict = ('-m', 'xception_flax.convert'), ('-m', 'xception_flax.predict')
    output = program(*convert, str(folder), 'hf-hub:me/net', **env)
    assert f'written to {env["HF_ENDPOINT"]}/me/net' in output
    for name in ('config.json', 'model.safetensors'):
        assert (served / 'me/net' / name).read_bytes() == (folder / name).read_bytes()

    image = tmp_path / 'image.png'
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8))
    expected = program(*predict, str(image), f'--weights={folder}', '--json')
    output = program(*predict, str(image), '--weights=hf-hub:me/net', '--json', **env)
    assert output == expected
    assert {label['name'] for label in json.loads(output)['labels']} == set(NAMES)
    assert list((tmp_path / 'home/hub').glob('models--me--net/snapshots/*/config.json'))
    (served / 'me/net/model.safetensors').unlink()
    offline = {**env, 'HF_HUB_OFFLINE': '1'}
    assert program(*predict, str(image), '--weights=hf-hub:me/net', '--json', **offline) == expected


def test_other_forms_of_a_configuration(folder, tmp_path):
    pooled = TIMM | {'global_pool': 'max'}
    assert "made with global_pool='max'" in said(tmp_path, {**pooled, 'model_args': {}}).problems[0]
    gaps = TIMM | {'label_names': {'2': 'c', '0': 'a'}}
    assert said(tmp_path, gaps).class_names == ('a', 'class 1', 'c')
    config = json.loads((folder / 'config.json').read_text())
    (tmp_path / 'model.safetensors').symlink_to(folder / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps(config | {'label_names': ['a', 'b']}))
    with pytest.raises(UserError, match='has 2 names for 3 classes'):
        xception_flax.load(tmp_path)
    config['pretrained_cfg']['input_size'] = [3, 28, 28]
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match='images of 28 pixels; xception here takes'):
        xception_flax.load(tmp_path)


def test_the_name_of_a_network_in_a_checkpoint_is_checked():
    for name in ('resnet50', 'resnet50.a1_in1k', 'my_model'):
        assert hub.read_architecture(name, 'resnet50').problems == []
    (problem,) = hub.read_architecture('resnetblur50', 'resnet50').problems
    assert problem == "its network is 'resnetblur50', which is not 'resnet50'"


def test_what_the_hub_does_not_have_is_an_error(server, program, tmp_path):
    served, env = server
    (served / 'me/empty').mkdir(parents=True)
    convert = ('-m', 'xception_flax.convert')
    for name, says in (('me/none', 'RepositoryNotFound'), ('me/empty', 'RemoteEntryNotFound')):
        output = program(*convert, f'hf-hub:{name}', str(tmp_path / 'run'), status=1, **env)
        assert output.startswith(f'error: hf-hub:{name} cannot be fetched ({says}')
        assert output.count('\n') == 1
    output = program(
        *convert, 'hf-hub:me/empty@v2', str(tmp_path / 'run'), status=1, **env
    )  # fmt: skip
    assert 'RevisionNotFound' in output
