"""The route that most ports took: restore the variables in a TensorFlow session, assign, `torch.save`.

python benchmarks/common_route.py INDEX OUT.pt
"""

import sys

import tensorflow as tf
import torch

index, out = sys.argv[1:]
prefix = index.removesuffix(".index")
tf.compat.v1.disable_eager_execution()
shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
variables = {key: tf.compat.v1.get_variable(key, shape) for key, shape in shapes.items()}
state = {}
with tf.compat.v1.Session() as session:
    tf.compat.v1.train.Saver(variables).restore(session, prefix)
    for key, variable in variables.items():
        tensor = torch.from_numpy(session.run(variable))
        state[key] = tensor.permute(4, 3, 0, 1, 2).contiguous() if tensor.ndim == 5 else tensor
torch.save(state, out)
