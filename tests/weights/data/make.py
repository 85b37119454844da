"""Made the `.pth` files beside it: with PyTorch 2.14.1, `python make.py` in this folder.

The numbers are those that test_pth.py expects.
"""

import collections

import torch

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
