"""Made the other files here, with PyTorch 2.14.1 and torchvision 0.29.1: `python make.py`.

The numbers are those that test_pth.py expects.
"""

import argparse
import collections
import json
import pathlib

import numpy as np
import torch
import torchvision

table = torch.arange(12, dtype=torch.float32).reshape(3, 4)
tensors = collections.OrderedDict(
    [
        ('plain', table),
        ('transposed', table.T),  # a view of the same storage
        ('part', table[1:, 2]),
        ('half', torch.tensor([1.5, -2.0], dtype=torch.float16)),
        ('brain', torch.tensor([1.5, -2.0], dtype=torch.bfloat16)),
        ('count', torch.tensor(7)),
        ('parameter', torch.nn.Parameter(torch.tensor([0.5]))),
        ('empty', torch.zeros(0, 3)),
    ]
)
torch.save(tensors, 'new.pth')
torch.save(tensors, 'old.pth', _use_new_zipfile_serialization=False)
wrapped = {'epoch': 3, 'state_dict': {f'module.{k}': v for k, v in tensors.items()}}
torch.save(wrapped, 'wrapped.pth')
torch.save(torch.nn.Linear(2, 2), 'module.pth')  # a whole module, which needs code to be loaded

# As training programs save: more than weights, averaged ones among them.
weights = {f'module._orig_mod.{k}': v for k, v in tensors.items()}
checkpoint = {
    'epoch': 3,
    'arch': 'legacy_xception',
    'args': argparse.Namespace(lr=0.1, data=pathlib.Path('/data')),
    'metric': np.float64(0.5),
    'rng': np.random.RandomState(0).get_state(),
    'history': collections.defaultdict(list, loss=[1.0]),
    'shape': torch.Size([3]),
    'dtype': torch.float32,
    'device': torch.device('cpu'),
    'optimizer': {'state': {0: {'step': torch.tensor(1.0)}}, 'param_groups': [{'lr': 0.1}]},
    'state_dict': {key: value * 0 for key, value in weights.items()},
    'state_dict_ema': weights,
}
torch.save(checkpoint, 'training.ckpt')
del checkpoint['state_dict_ema']
checkpoint['model_state_dict'] = checkpoint.pop('state_dict')
torch.save(checkpoint, 'raw.ckpt')

# Names and shapes of torchvision's networks, without values.
shapes = {}
for name in ('vgg16', 'vgg16_bn'):
    with torch.device('meta'):
        model = getattr(torchvision.models, name)(weights=None)
    shapes[name] = {key: list(value.shape) for key, value in model.state_dict().items()}
pathlib.Path('torchvision.json').write_text(json.dumps(shapes, separators=(',', ':')))
