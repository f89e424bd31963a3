"""What a reference for a 2D source is: an execution of the ImageNet network that shares nothing with what it judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Precision = Literal["float32", "float64"]
Images = NDArray[np.float64]
# (stored key without the prefix, array in the source's own layout) -> the array that is used instead.
Adjust = Callable[[str, NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class ImageOutputs:
    """What a network computes from images.

    Attributes:
        features: (N, F), pooled over space, before the classifier.
        logits: (N, classes); None when the source has no classifier.
    """

    features: NDArray[Any]
    logits: NDArray[Any] | None


class ImageReference(Protocol):
    """Runs a source file in its own library, or in a plain forward over the source's own names.

    It reads the file itself. Neither our tables of names nor our list of layers has a part in it, or a mistake in
    those would be on both sides of the comparison.
    """

    @property
    def name(self) -> str:
        """What runs, in a few words: `torchvision`."""
        ...

    @property
    def version(self) -> str:
        """The libraries that run it, with their versions; imports them.

        Raises:
            UnavailableError: a library is installed and cannot be imported.
        """
        ...

    def outputs(self, images: Images, precision: Precision, adjust: Adjust | None = None) -> ImageOutputs:
        """The pooled features and the logits of images.

        Args:
            images: (N, C, H, W) float64, as the weights expect them. torchvision and timm ResNets: RGB, normalised by
                ImageNet's mean and deviation; Keras: BGR less the mean; slim ResNets: RGB in 0..255 less the
                mean; Inception and GoogLeNet: RGB in [-1, 1]. C is that of the adjusted first kernel.
            precision: in which the whole network computes.
            adjust: applied to every tensor of real numbers after it was read and widened to float64.

        Raises:
            FormatError: the library cannot read the file, or a tensor of the network is missing from it.
            UnavailableError: a library is installed and cannot be imported.
        """
        ...
