"""What running a network against its references shows: differences, coverage, and whether a fault would be seen."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import nn

from vidweights.clips import moving_clip, noise_clip
from vidweights.families.resnet3d import ResNet3DConfig
from vidweights.layout import Array
from vidweights.progress import Progress, silent
from vidweights_converters.coverage import coverage
from vidweights_converters.difference import finite, relative_difference
from vidweights_converters.endpoints import layer_errors
from vidweights_converters.faults import Fault, deliberate, inject
from vidweights_converters.localise import localise
from vidweights_converters.references.base import HEAD, Clip, Precision, Reference
from vidweights_converters.report import ClipResult, FaultResult, ReferenceResult

EXACT_TOLERANCE = 1e-9  # of torch against torch, in float64
LEAST_TOLERANCE = 1e-5
GAPS = 4  # a tolerance is at least this many float32-to-float64 gaps of the reference
LEAST_RESPONSE = 0.1
LEAST_RATIO = 10

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class NamedClip:
    """A clip (1, C, T, H, W), float32 in [-1, 1], and what it is."""

    name: str
    array: Clip

    @property
    def sha256(self) -> str:
        """The SHA-256 of its bytes."""
        return hashlib.sha256(self.array.tobytes()).hexdigest()


def clip_sizes(config: Any) -> tuple[Triple, ...]:
    """(T, H, W) of the clips for a network: all differ, T is odd and even. I3D takes H and W of 193 to 224 only.

    The smallest comes first: what takes one clip takes it.
    """
    if isinstance(config, ResNet3DConfig) and config.head_window is None:
        times = (config.frames,) * 3 if config.frames else (9, 16, 17)
        return tuple((t, h, w) for t, (h, w) in zip(times, ((80, 64), (64, 88), (72, 80))))
    return (9 if not isinstance(config, ResNet3DConfig) else 13, 193, 224), (16, 224, 199), (17, 210, 224)


def default_clips(config: Any) -> tuple[NamedClip, ...]:
    """Noise and a moving texture, for a network of that configuration."""
    channels, sizes = config.in_channels, clip_sizes(config)
    makers = ((noise_clip, "noise"), (noise_clip, "noise"), (moving_clip, "moving"))
    return tuple(
        NamedClip(f"{kind} {t}x{h}x{w}", make(t, h, w, channels, seed))
        for seed, ((t, h, w), (make, kind)) in enumerate(zip(sizes, makers))
    )


@dataclass(frozen=True)
class Findings:
    """The part of a report that comes from running the network."""

    references: tuple[ReferenceResult, ...]
    response: float
    coverage: Mapping[str, float]
    faults: tuple[FaultResult, ...]


def examine(
    network: nn.Module, references: Sequence[Reference], clips: Sequence[NamedClip], progress: Progress = silent
) -> Findings:
    """Run a network against references, and see what the comparison can see.

    Args:
        network: in evaluation mode; in float64 if the references are all of torch, else in float32.
        references: at least one; the deliberate faults are judged by the first.
        clips: at least two that are unrelated.
    """
    return _Examination(network, clips, _Steps(progress, len(references) * (len(clips) + 1) + 2)).run(references)


class _Steps:
    """Counts what has been done for a progress bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def next(self, what: str) -> None:
        self.progress(what, self.done, self.total)
        self.done += 1


class _Examination:
    """One network, its clips, and its logits for them."""

    def __init__(self, network: nn.Module, clips: Sequence[NamedClip], steps: _Steps) -> None:
        self.network, self.clips, self.steps = network, clips, steps
        dtype = next(network.parameters()).dtype
        self.precision: Precision = "float64" if dtype is torch.float64 else "float32"
        self.tensors = {clip.name: torch.from_numpy(np.ascontiguousarray(clip.array)).to(dtype) for clip in clips}
        with torch.no_grad():
            self.ours = {name: network(tensor).numpy() for name, tensor in self.tensors.items()}

    def run(self, references: Sequence[Reference]) -> Findings:
        judged = [self.compare(reference) for reference in references]
        self.steps.next("coverage")
        shares = coverage(self.network, self.tensors.values())
        self.steps.next("deliberate faults")
        result, logits = judged[0]
        faults = self.faults(logits, result.tolerance)
        return Findings(tuple(result for result, _ in judged), response(logits.values()), shares, faults)

    def compare(self, reference: Reference) -> tuple[ReferenceResult, dict[str, Array]]:
        """The comparison with one reference, and the reference's logits."""
        first = self.clips[0]
        other: Precision = "float32" if self.precision == "float64" else "float64"
        self.steps.next(f"{reference.name} in {other}")
        rounded = reference.endpoints(first.array, other)[HEAD]
        gap = tolerance = 0.0
        logits: dict[str, Array] = {}
        layers: dict[str, float] = {}
        departure, failed = None, False
        for clip in self.clips:
            self.steps.next(f"{reference.name}, {clip.name}")
            endpoints = reference.endpoints(clip.array, self.precision)
            logits[clip.name] = endpoints[HEAD]
            if clip is first:
                gap = relative_difference(*sorted((endpoints[HEAD], rounded), key=lambda array: array.itemsize))
                tolerance = EXACT_TOLERANCE if self.precision == "float64" else tolerance_of(gap)
                layers = layer_errors(self.network, self.tensors[clip.name], endpoints)
            if not failed and relative_difference(self.ours[clip.name], endpoints[HEAD]) > tolerance:
                failed, departure = True, localise(self.network, self.tensors[clip.name], endpoints, tolerance)
        results = tuple(measure(clip, self.ours[clip.name], logits[clip.name]) for clip in self.clips)
        result = ReferenceResult(reference.name, reference.version, finite(gap), tolerance, results, departure, layers)
        return result, logits

    def faults(self, logits: Mapping[str, Array], tolerance: float) -> tuple[FaultResult, ...]:
        """What each deliberate fault does to the logits, next to those of a reference."""
        return tuple(self.fault(layer, fault, logits, tolerance) for layer, fault in deliberate(self.network))

    def fault(self, layer: str, fault: Fault, logits: Mapping[str, Array], tolerance: float) -> FaultResult:
        """What a fault does in the first clip that shows it, or in the one that shows it most."""
        ratios: dict[str, float] = {}
        for clip, tensor in self.tensors.items():
            output = inject(self.network, layer, fault, tensor)
            if output is None:
                continue
            ratios[clip] = finite(relative_difference(output, logits[clip]) / tolerance)
            if ratios[clip] > LEAST_RATIO:
                break
        if not ratios:
            return FaultResult(layer, fault.name, skipped=fault.harmless_if)
        shown = max(ratios, key=lambda clip: ratios[clip])
        return FaultResult(layer, fault.name, shown, ratios[shown])


def tolerance_of(gap: float) -> float:
    """The largest relative difference that counts as a match, for a reference of that float32-to-float64 gap."""
    return max(LEAST_TOLERANCE, GAPS * gap) if math.isfinite(gap) else LEAST_TOLERANCE


def measure(clip: NamedClip, ours: Array, theirs: Array) -> ClipResult:
    """Our logits against a reference's, (1, classes) each."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    best = [set(np.argsort(-logits, axis=1, kind="stable")[0, :5]) for logits in (a, b)]
    return ClipResult(
        name=clip.name,
        sha256=clip.sha256,
        max_abs=finite(np.abs(a - b).max()),
        max_relative=finite(relative_difference(a, b)),
        relative_l2=finite(float(np.linalg.norm(a - b) / np.linalg.norm(b))),
        cosine=float(np.nan_to_num((a * b).sum() / norms)) if norms else 0.0,
        top5=len(best[0] & best[1]),
    )


def response(logits: Iterable[Array]) -> float:
    """By how much two unrelated clips differ at least, relative to the largest logit; 0 for a network that is blind."""

    def difference(a: Array, b: Array) -> float:
        largest = float(max(np.abs(a).max(), np.abs(b).max()))
        return float(np.abs(a - b).max()) / largest if 0 < largest < math.inf else 0.0

    return min((difference(a, b) for a, b in combinations(logits, 2)), default=0.0)
