"""The least that a conversion can do: read each tensor, permute the kernels, write safetensors. No checks.

python benchmarks/bare_numpy.py DATA LAYOUT.json OUT
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

data, layout, out = sys.argv[1:]
buffer = Path(data).read_bytes()
tensors = {}
for key, offset, shape in json.loads(Path(layout).read_text()):
    count = int(np.prod(shape))
    array = np.frombuffer(buffer, np.float32, count, offset).reshape(shape)
    tensors[key] = np.ascontiguousarray(array.transpose(4, 3, 0, 1, 2)) if array.ndim == 5 else array
save_file(tensors, out)
