"""What running an inflated network beside its 2D source shows: differences on still clips and on noise, under either
padding in time, and whether a mistake would be seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vidweights.inflation import Inflation
from vidweights_converters.difference import finite, relative_difference
from vidweights_converters.equality_report import ClipEquality, PlaneResult, ReferenceEquality, ZeroPadding
from vidweights_converters.frames import frame_map
from vidweights_converters.inflated_faults import HEAD_BIAS, InflatedFault, edited, time_padding
from vidweights_converters.kernel_check import Adjustment
from vidweights_converters.references.images.base import Adjust, ImageReference, Precision
from vidweights_converters.report import FaultResult
from vidweights_converters.stills import NamedInput, Values

PADDINGS = ("replicate", "zero")
_ZERO_FRAMES = (16, 32)


class Runner:
    """An inflated network in float64 and evaluation mode, and the clips that it is shown.

    Attributes:
        compared: `logits`, or `features` where the head is not the source's.
        noise: clips of unrelated frames; empty where the frames of a clip may not differ.
        adjust: makes the 2D network's tensors those that the 3D network holds; `plain` leaves out rounding and fits.
    """

    def __init__(  # noqa: PLR0917
        self,
        network: nn.Module,
        planned: Inflation,
        compared: str,
        images: Sequence[NamedInput],
        noise: Sequence[NamedInput],
        fits: Mapping[str, Values],
    ) -> None:
        self.network, self.planned, self.compared, self.images, self.noise = network, planned, compared, images, noise
        self.adjust, self.plain = Adjustment(planned, fits), Adjustment(planned, divide=False)

    def source(self, reference: ImageReference, inputs: Values, precision: Precision, adjust: Adjust) -> Values:
        """What the 2D network gives for images (N, C, H, W): (N, K)."""
        outputs = reference.outputs(inputs, precision, adjust)
        values = outputs.logits if self.compared == "logits" else outputs.features
        assert values is not None
        return values

    def wanted(self, reference: ImageReference) -> dict[str, Values]:
        """What the 2D network gives for each image, (1, K), and for each frame of noise, (T, K)."""
        inputs = {image.name: image.array for image in self.images}
        inputs |= {clip.name: clip.array[0].transpose(1, 0, 2, 3) for clip in self.noise}
        return {name: self.source(reference, array, "float64", self.adjust) for name, array in inputs.items()}

    @torch.no_grad()
    def frames(self, clip: Values, network: nn.Module | None = None) -> Tensor:
        """What the 3D network gives for each output frame of a clip (1, C, T, H, W): (T', K)."""
        net, x = network or self.network, _tensor(clip, network or self.network)
        if self.compared == "features" and _has_head(net):
            features: Tensor = net.features(x).mean((3, 4))  # type: ignore[operator]
            return features.transpose(1, 2)[0]
        return net.per_frame(x)[0]  # type: ignore[operator,no-any-return]

    @torch.no_grad()
    def whole(self, clip: Values) -> Tensor:
        """What the 3D network gives for a clip (1, C, T, H, W): (1, K)."""
        x = _tensor(clip, self.network)
        if self.compared == "features" and _has_head(self.network):
            return self.network.features(x).mean((2, 3, 4))  # type: ignore[operator,no-any-return]
        return self.network(x)  # type: ignore[no-any-return]

    def ours(self, progress: Any) -> dict[tuple[str, str], tuple[Tensor, Tensor | None]]:
        """Frames and whole of every still clip with its ends repeated, and frames of noise under either padding."""
        found: dict[tuple[str, str], tuple[Tensor, Tensor | None]] = {}
        # A network that is to repeat the ends has to do so as it was built.
        built = self.planned.config.time_padding == "replicate"
        with edited([] if built else time_padding(self.network, replicate=True)):
            for image in self.images:
                progress(image.name)
                found[image.name, "replicate"] = self.frames(image.clip()), self.whole(image.clip())
        for padding in PADDINGS:
            with edited(time_padding(self.network, replicate=padding == "replicate")):
                for clip in self.noise:
                    progress(f"{clip.name}, {padding}")
                    found[clip.name, padding] = self.frames(clip.clip()), None
        return found

    def compare(
        self,
        reference: ImageReference,
        wanted: Mapping[str, Values],
        ours: Mapping[tuple[str, str], tuple[Tensor, Tensor | None]],
        short: nn.Module,
    ) -> ReferenceEquality:
        """The comparison with one reference; `short` is the network in float32."""
        first = self.images[0]
        clips = {clip.name: clip for clip in (*self.images, *self.noise)}
        plain = self.source(reference, first.array, "float64", self.plain)
        in_short = self.source(reference, first.array, "float32", self.adjust)
        with edited(time_padding(short, replicate=True)):
            ours_short = self.frames(first.clip(), short)
        return ReferenceEquality(
            name=reference.name,
            version=reference.version,
            clips=tuple(self._clip(clips[name], padding, pair, wanted[name]) for (name, padding), pair in ours.items()),
            unadjusted=_off(ours[first.name, "replicate"][0], plain),
            float32=_off(ours_short, in_short),
            gap=finite(relative_difference(in_short, wanted[first.name])),
        )

    def _clip(self, clip: NamedInput, padding: str, ours: tuple[Tensor, Tensor | None], wanted: Values) -> ClipEquality:
        frames, whole = ours
        inputs = None if clip.still else frame_map(self.planned.config, clip.frames)
        expected = wanted if inputs is None else wanted[list(inputs)]
        return ClipEquality(
            name=clip.name,
            sha256=clip.sha256,
            padding=padding,
            frames=_off(frames, expected),
            clip=None if whole is None else _off(whole, wanted),
            inputs=inputs,
            each=_each(frames, expected),
        )

    def zero_padding(self, wanted: Mapping[str, Values]) -> tuple[ZeroPadding, ...]:
        """How far still clips of the first image are off it with zeros in time."""
        image, results = self.images[0], []
        with edited(time_padding(self.network, replicate=False)):
            for count in _ZERO_FRAMES:
                frames = self.frames(image.clip(count))
                off = [_off(frame[None], wanted[image.name]) for frame in frames]
                clip = _off(frames.mean(0, keepdim=True), wanted[image.name])
                height, width = image.array.shape[-2:]
                results.append(ZeroPadding(f"{image.kind} {count}x{height}x{width}", tuple(off), clip))
        return tuple(results)

    def fault(self, fault: InflatedFault, wanted: Mapping[str, Values], tolerance: float) -> FaultResult:
        """By how many tolerances a mistake moves the output, on the first clip that may show it."""
        if fault is HEAD_BIAS and self.compared != "logits":
            return FaultResult("head", fault.name, skipped="the head is not compared")
        method = "mean" if self.planned.options.method == "mean" else "center"
        with edited(time_padding(self.network, replicate=True)):
            layer, edits = fault.edits(self.network)
            if fault.only not in (None, method):
                return FaultResult(layer, fault.name, skipped=f"not with the method {self.planned.options.method}")
            if not edits:
                return FaultResult(layer, fault.name, skipped=fault.harmless_if)
            if fault.seen_on == "noise" and not self.noise:
                return FaultResult(layer, fault.name, skipped="a still clip cannot show it; the kernels are compared")
            clip = self.images[0] if fault.seen_on == "still" else self.noise[0]
            with edited(edits):
                frames = self.frames(clip.clip())
        expected = wanted[clip.name]
        if fault.seen_on == "noise":
            expected = expected[list(frame_map(self.planned.config, clip.frames))]
        return FaultResult(layer, fault.name, clip.name, finite(_off(frames, expected) / tolerance))


def _off(ours: Tensor, wanted: Values) -> float:
    """The largest difference, relative to the largest wanted value; one wanted row stands for all."""
    rows = wanted.repeat(len(ours), axis=0) if len(wanted) == 1 else wanted
    return finite(relative_difference(ours.numpy(), rows))


def _each(ours: Tensor, wanted: Values) -> tuple[float, ...]:
    """The largest difference in each row, relative to the largest wanted value of all rows."""
    largest = np.abs(wanted).max()
    rows = np.abs(ours.numpy() - wanted).max(axis=1)
    return tuple(finite(float(row / largest)) if row else 0.0 for row in rows)


def _tensor(clip: Values, network: nn.Module) -> Tensor:
    return torch.from_numpy(clip).to(next(network.parameters()).dtype)


def _has_head(network: nn.Module) -> bool:
    return any(getattr(network, name, None) is not None for name in ("fc", "Logits"))


@contextmanager
def clipped(network: nn.Module, planes: Sequence[PlaneResult]) -> Iterator[Counter[str]]:
    """Counts, per (2+1)D unit, the values of lifted planes below zero while the block runs."""
    counts: Counter[str] = Counter()
    handles = []

    def count(layer: str, lifted: slice) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            counts[layer] += int((output[:, lifted] < 0).sum())

        return hook

    for one in planes:
        if one.lifted:
            # Behind the paired outputs, and before the negatives: see `PlaneResult`.
            lifted = (
                slice(0, one.middle) if one.promise == "approximate" else slice(one.outputs - one.lifted, one.outputs)
            )
            norm = network.get_submodule(f"{one.layer}.spatial.bn")
            handles.append(norm.register_forward_hook(count(one.layer, lifted)))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
