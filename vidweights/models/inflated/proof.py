"""The proof that an inflated network computes on a still clip what the 2D network computes on the image."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vidweights.errors import InputError, PlanError, UsageError, ValidationError, VidweightsError
from vidweights.kernels import Taps
from vidweights.models.inflated.layers import Forward, convolutions
from vidweights.models.inflated.window import Options, TimePadding

TOLERANCE = 1e-9  # of the largest value, in float64
LENGTHS = (8, 16, 32, 64, 128)  # frames of the first clip, in the order in which they are tried

Visit = Callable[[str, int, Any], None]


def prove(
    module: nn.Module, network: nn.Module, method: Taps, size: tuple[int, ...]
) -> tuple[set[str], dict[str, Any]]:
    """The parts that were reached, and the figures of `Inflation`; or an error that names the part that is wrong."""
    device = next(module.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        reference, proof = _reference(module, method), _evaluated(network, torch.float64)
        _options(proof).time_padding = "replicate"
        images = _noise(2, size, reference)
        short = _first_still(reference, proof, images)
        long = _second_still(reference, proof, images[:1], short.clip[2])
        figures: dict[str, Any] = {"clips": (short.clip, long.clip), "float64": max(short.output, long.output)}
        if method == "center":
            figures |= _on_noise(reference, proof, _noise(long.clip[2], size, reference))
        del reference, proof
        return short.reached | long.reached, figures | _single(
            module, network, _still(images[:1].float(), short.clip[2])
        )


@contextmanager
def enough_memory() -> Iterator[None]:
    """Tell that memory was not enough, which torch says in an error of no class of its own on a CPU."""
    try:
        yield
    except Exception as error:
        if not _lacks_memory(error):
            raise
        raise UsageError(
            "not enough memory to inflate and check the network, which takes several copies in float64; give "
            "check=(C, H, W) with a smaller image, or move the network to the CPU"
        ) from error


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "tried to allocate" in str(error).lower()


@dataclass
class _Comparison:
    """What was found on a still clip of the shape `clip`."""

    clip: tuple[int, ...]
    output: float = math.inf
    reached: set[str] = field(default_factory=set)


def _first_still(reference: nn.Module, proof: nn.Module, images: Tensor) -> _Comparison:
    """The comparison on the shortest clip that the 3D network takes."""
    for frames in LENGTHS:
        try:
            return _compare(reference, proof, images, frames)
        except InputError as error:
            reason = error
    raise PlanError(f"the inflated network takes no clip of {LENGTHS[-1]} frames: {reason}", {}) from reason


def _second_still(reference: nn.Module, proof: nn.Module, images: Tensor, frames: int) -> _Comparison:
    """The comparison on an odd number of frames; on an even one for 2D code that takes only images of even sizes."""
    try:
        # So many that with a stride of 32 there is more than one frame everywhere.
        return _compare(reference, proof, images, max(33, frames + 1) if _options(proof).time_stride else frames + 1)
    except PlanError:
        return _compare(reference, proof, images, 4 * frames)


def _compare(reference: nn.Module, proof: nn.Module, images: Tensor, frames: int) -> _Comparison:
    """Compare what every part gives; raise an error that names the first one that departs."""
    clip = _still(images, frames)
    result = _Comparison(tuple(clip.shape))
    expected: dict[tuple[str, int], list[Tensor]] = {}
    departures: list[ValidationError] = []  # raised at the end, since the network may catch what is raised in it

    def record(name: str, call: int, output: Any) -> None:
        expected[name, call] = [tensor.clone() for tensor in _tensors(output)]  # later layers may work in place

    def compare(name: str, call: int, output: Any) -> None:
        result.reached.add(name)
        found, wanted = _tensors(output), expected.get((name, call), [])
        differences = [_difference(*both) for both in zip(found, wanted)]
        worst = max((d for d in differences if d is not None), default=0.0)
        if not name:
            worst = result.output = _of_outputs(found, wanted)
        if worst > TOLERANCE:
            departures.append(_departs(name, proof, worst, found, wanted))

    _run(reference, images, record)
    if not expected["", 0]:
        raise UsageError("the output of the network has no floating tensor to compare; give one that returns features")
    for (name, _), tensors in expected.items():
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise UsageError(
                f"the 2D network itself gives NaN or infinity at {name or 'its output'}; look at its weights"
            )
    _run(proof, clip, compare)
    if departures:
        raise departures[0]
    return result


def _departs(name: str, proof: nn.Module, worst: float, found: list[Tensor], wanted: list[Tensor]) -> ValidationError:
    kind = type(proof.get_submodule(name)).__name__
    where = f"the first part that departs is {name} ({kind})" if name else "all parts agree but its output"
    shapes = [", ".join(str(tuple(tensor.shape)) for tensor in tensors) for tensors in (wanted, found)]
    return ValidationError(
        f"on a still clip the inflated network does not compute what the 2D network computes: {where}\n"
        f"  largest difference: {worst:.2g} of the largest value, expected at most {TOLERANCE:g}\n"
        f"  shape there in 2D: {shapes[0]}, in 3D: {shapes[1]}\n"
        "Look in the `forward` around this part for code that holds for 4 axes only."
    )


def _on_noise(reference: nn.Module, proof: nn.Module, frames: Tensor) -> dict[str, Any]:
    """`center` on noise: at the last layer before time is pooled, frame j is the 2D network on frame s * j."""
    last: list[tuple[tuple[str, int], Tensor]] = []
    expected: list[Tensor] = []

    def keep(name: str, call: int, output: Any) -> None:
        tensors = _tensors(output)
        if not watch.mixed and len(tensors) == 1 and tensors[0].dim() == 5:
            last[:] = [((name, call), tensors[0].clone())]

    def fetch(name: str, call: int, output: Any) -> None:
        if (name, call) == last[0][0]:
            expected[:] = [tensor.clone() for tensor in _tensors(output)]

    with _TimeMixing() as watch:
        _run(proof, frames.transpose(0, 1).unsqueeze(0).contiguous(), keep)
    if not last:
        return {}
    _run(reference, frames, fetch)
    (name, _), found = last[0]
    wanted = expected[0].transpose(0, 1).unsqueeze(0)  # (1, C, T, H, W)
    steps = [s for s in range(1, len(frames) + 1) if -(-len(frames) // s) == found.size(2)]
    differences = [(_difference(found, wanted[:, :, ::s]), s) for s in steps]
    difference, step = min(((math.inf if d is None else d, s) for d, s in differences), default=(math.inf, 0))
    if not difference <= TOLERANCE:
        raise ValidationError(
            "on a clip of noise the frames of the inflated network are not those of the 2D network: at "
            f"{name or 'the output'} the largest difference is {difference:.2g} of the largest value, expected at most "
            f"{TOLERANCE:g} (method 'center')"
        )
    return {"noise_layer": name, "noise_stride": step, "noise": difference}


class _TimeMixing(TorchFunctionMode):
    """Notes when a call brings frames of a clip together."""

    mixed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("max_pool2d", "avg_pool2d"):
            self.mixed = True
        elif args and isinstance(args[0], Tensor) and args[0].dim() == 5:
            # Batch norm without running statistics takes those of the clip.
            self.mixed |= name in _MIXES_TIME or (name == "batch_norm" and args[1] is None)
        return func(*args, **(kwargs or {}))


_MIXES_TIME = {
    "adaptive_avg_pool3d",
    "adaptive_max_pool3d",
    "amax",
    "amin",
    "group_norm",
    "instance_norm",
    "mean",
    "reshape",
    "sum",
    "view",
}


def _single(module: nn.Module, network: nn.Module, clip: Tensor) -> dict[str, float]:
    """The differences in float32 from the 2D network as it was given, with either padding in time."""
    expected = _tensors(_evaluated(module, torch.float32)(clip[:, :, 0]))
    single = _evaluated(network, torch.float32)
    figures = {}
    fills: dict[str, TimePadding] = {"float32": "replicate", "zero_padding": "zero"}
    for name, fill in fills.items():
        _options(single).time_padding = fill
        figures[name] = _of_outputs(_tensors(single(clip)), expected)
    return figures


def _reference(module: nn.Module, method: Taps) -> nn.Module:
    """The 2D network in float64 whose kernels are what the steps of the 3D kernels must add up to: N * fl(W / N)."""
    reference = _evaluated(module, torch.float64)
    if method == "mean":
        for source, target in zip(convolutions(module), convolutions(reference)):
            steps, dtype = source.kernel_size[0], source.weight.dtype
            step = source.weight.to(torch.promote_types(dtype, torch.float32)) / steps
            target.weight.copy_(step.to(dtype).double() * steps)
    return reference


def _evaluated(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in evaluation mode, on a device that has float64."""
    twin = copy.deepcopy(network)
    if next(network.parameters()).device.type == "mps":
        twin = twin.cpu()
    return twin.to(dtype).eval()


def _options(network: nn.Module) -> Options:
    return cast(Forward, network.forward).options


def _noise(count: int, size: tuple[int, ...], network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, *size, generator=generator, dtype=torch.float64)
    return noise.to(next(network.parameters()).device)


def _still(images: Tensor, frames: int) -> Tensor:
    return images.unsqueeze(2).expand(-1, -1, frames, -1, -1).contiguous()


def _run(network: nn.Module, x: Tensor, visit: Visit) -> None:
    """Run a network on images or a clip and call `visit(name, number of the call, output)` as each part ends."""
    running: list[str] = []
    calls: Counter[str] = Counter()

    def enter(name: str, *_: Any) -> None:
        running.append(name)

    def leave(name: str, part: nn.Module, args: Any, output: Any) -> None:
        running.pop()
        with torch._C.DisableTorchFunction():  # what is done here is not code of the network
            visit(name, calls[name], output)
        calls[name] += 1

    with ExitStack() as hooks:
        for name, part in network.named_modules():
            hooks.enter_context(part.register_forward_pre_hook(partial(enter, name)))
            hooks.enter_context(part.register_forward_hook(partial(leave, name)))
        try:
            network(x)
        except Exception as error:
            if isinstance(error, InputError) or _lacks_memory(error):
                raise
            raise _told(error, running[-1] if running else "", network, x) from error


def _told(error: Exception, part: str, network: nn.Module, x: Tensor) -> VidweightsError:
    """What a network that raised `error` in `part` means for a person."""
    said = f"{part or 'the network'}: {type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
    if x.dim() == 4:
        return UsageError(
            f"the 2D network itself does not take images {tuple(x.shape)} in float64: {said}; give check=(C, H, W) "
            "that it takes, and see that images are all it needs and that all of its weights are registered"
        )
    return PlanError(
        f"{type(network).__name__} cannot be inflated: its code does not take a clip {tuple(x.shape)}",
        {"raised by": [said]},
        "Rewrite that part so that it does not count axes (x.mean((2, 3)), x.flatten(1), ...), or leave it out.",
    )


def _tensors(output: Any) -> list[Tensor]:
    """The floating tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    parts: Any = output.values() if isinstance(output, Mapping) else output
    return [tensor for part in parts for tensor in _tensors(part)] if isinstance(output, (Mapping, Sequence)) else []


def _of_outputs(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of the outputs of two networks; infinite where they cannot be compared."""
    differences = [_difference(*both) for both in zip(found, expected)]
    return math.inf if len(found) != len(expected) or None in differences else max(cast(list[float], differences))


def _difference(found: Tensor, expected: Tensor) -> float | None:
    """The largest difference, relative to the largest expected value; None if the shapes cannot be compared.

    `found` may have one axis more than `expected`, that of time: every frame is then compared.
    """
    if found.shape != expected.shape:
        time = next((a for a in (2, 1) if found.shape[:a] + found.shape[a + 1 :] == expected.shape), None)
        if time is None:
            return None
        expected = expected.unsqueeze(time)
    error, scale = (float(x.abs().max()) if x.numel() else 0.0 for x in (found - expected, expected))
    if error == 0:
        return 0.0
    return error / scale if scale and math.isfinite(error) else math.inf
