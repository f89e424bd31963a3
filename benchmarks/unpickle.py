"""The route of most ports of Caffe2 weights: unpickle, `torch.save`. Nothing is renamed or checked.

python benchmarks/unpickle.py BLOBS.pkl OUT.pt
"""

import pickle
import sys
from pathlib import Path

import torch

source, out = sys.argv[1:]
with Path(source).open("rb") as file:
    blobs = pickle.load(file, encoding="latin1")["blobs"]
torch.save({name: torch.from_numpy(array) for name, array in blobs.items()}, out)
