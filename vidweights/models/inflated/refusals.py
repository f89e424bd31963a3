"""What cannot be inflated, found before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, get_args

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from vidweights.errors import PlanError, UsageError
from vidweights.kernels import Taps
from vidweights.models.inflated.layers import Forward, base_of, convolutions, keeps_forward
from vidweights.models.inflated.window import Options, TimePadding

_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
_NO_3D_FORM = (nn.MultiheadAttention, nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample)


def refuse_arguments(module: Any, options: Options, check: Any) -> None:
    """Refuse a request that is wrong whatever the layers are."""
    for name, kind in (("method", Taps), ("time_padding", TimePadding)):
        if (value := getattr(options, name)) not in get_args(kind):
            raise UsageError(f"{name}={value!r} is not known; expected one of {', '.join(get_args(kind))}")
    sizes = (3, 224, 224) if check is None else check
    if not isinstance(sizes, Sequence) or [type(n) for n in sizes] != [int] * 3 or min(sizes) < 1:
        raise UsageError(f"check={check!r}: expected three positive numbers (C, H, W)")
    for fault in _faults(module):
        raise UsageError(fault)


def _faults(module: Any) -> Iterator[str]:
    """Why an object is no 2D network with weights."""
    kind = type(module).__name__
    if not isinstance(module, nn.Module):
        yield f"expected a torch.nn.Module, found {kind}"
    if isinstance(module.__dict__.get("forward"), Forward):
        yield "this network has been inflated already; give the 2D network"
    if kind in _WRAPPERS:
        yield f"found a {kind}; give the network inside, `.{_WRAPPERS[kind]}`"
    if isinstance(module, torch.jit.ScriptModule):
        yield "found a scripted network, whose code cannot be read for clips; give the original module"
    if not convolutions(module):
        yield f"{kind} has no Conv2d; there is nothing to inflate"
    if any(is_lazy(p) or p.device.type == "meta" for p in module.parameters()):
        yield "the network holds no weights yet (lazy layers, or the meta device); load or run it first"
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            yield f"{name} has weights of {parameter.dtype}; expected a floating dtype, which W / N needs"


def refuse_parts(module: nn.Module, method: Taps) -> None:
    """Name every part that has no 3D form, in one `PlanError`."""
    lines = [
        f"{name or 'the network'} ({type(part).__name__}): {reason}"
        for name, part in module.named_modules()
        for reason in islice(_reasons(part, method), 1)
    ]
    if lines:
        raise PlanError(
            f"{type(module).__name__} cannot be inflated",
            {"parts without a 3D form here": lines},
            "Replace these parts, or inflate the part of the network that is without them.",
        )


def _reasons(part: Any, method: Taps) -> Iterator[str]:
    """Why a module cannot be inflated."""
    base, kind = base_of(part), type(part)
    if part._forward_hooks or part._forward_pre_hooks:
        yield "has forward hooks, which were written for images; remove them first"
    if "forward" in part.__dict__:
        yield "its forward was replaced on the instance"
    if base is not None and parametrize.is_parametrized(part):
        yield "is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
    if base not in (None, nn.BatchNorm2d) and not keeps_forward(part, base):
        yield f"a {base.__name__} with a forward of its own"
    if base is nn.Conv2d and method == "center" and part.kernel_size[0] % 2 == 0:
        yield f"kernel {part.kernel_size} has no middle for method='center'; use 'mean'"
    if base is not None and getattr(part, "return_indices", False):
        yield "returns indices"
    from_torch = base is None and kind.__module__.startswith("torch.nn.")
    if isinstance(part, _NO_3D_FORM) or (from_torch and kind.__name__.endswith("2d")):
        yield "has no 3D form here"
    if isinstance(part, nn.LayerNorm) and len(part.normalized_shape) > 1:
        yield f"its weight is of one map size {part.normalized_shape}"
    if from_torch and kind.__name__.endswith("3d"):
        yield "is 3D already"
