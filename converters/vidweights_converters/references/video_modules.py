"""The networks of torchvision and pytorchvideo, as these libraries make them, run on the tensors of a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidweights.errors import UnavailableError
from vidweights_converters.references.base import HEAD, Clip, Precision
from vidweights_converters.references.images.source import SourceNet, differing
from vidweights_converters.references.images.torchvision_net import torchvision

if TYPE_CHECKING:
    from torch import Tensor, nn

Endpoints = dict[str, NDArray[Any]]


class _ModuleNet(SourceNet):
    """A library's module on the tensors of a file; a subclass makes the module and says where its endpoints are."""

    def make(self) -> tuple[nn.Module, dict[str, str]]:
        """The module, which may be on the meta device, and {endpoint: name of the submodule that puts it out}."""
        raise NotImplementedError

    def endpoints(self, clip: Clip, precision: Precision) -> Mapping[str, NDArray[Any]]:
        """See `Reference.endpoints`. The module takes tensors of any width in the places of its own.

        Raises:
            FormatError: a tensor is missing from the file, or the module has no place for one.
        """
        import torch

        module, places = self.make()
        dtype = getattr(torch, precision)
        state = {key: torch.from_numpy(array).to(dtype) for key, array in self.tensors.items()}
        for name, _ in module.named_buffers():
            if name.endswith("num_batches_tracked"):  # no part of evaluation, and absent from older files
                state[name] = torch.zeros((), dtype=torch.int64)
        differing(self.path, type(module).__name__, set(module.state_dict()), set(state))
        found: Endpoints = {}
        for endpoint, place in places.items():
            module.get_submodule(place).register_forward_hook(_keep(found, endpoint))
        x = torch.from_numpy(np.ascontiguousarray(clip)).to(dtype)
        with torch.no_grad():
            logits = torch.func.functional_call(module.eval(), state, (x,), strict=True)
        return {**found, HEAD: logits.numpy()}


def _keep(found: Endpoints, endpoint: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        found[endpoint] = output.clone().numpy()  # the next module may work in place

    return hook


class TorchvisionVideo(_ModuleNet):
    """torchvision's `VideoResNet`, of the blocks and convolutions that the file's names tell.

    VMZ and ig65m use the same classes with other middle planes and another epsilon.
    """

    name = "torchvision"

    @property
    def version(self) -> str:
        """The versions of torchvision and torch. Raises UnavailableError when torchvision cannot be imported."""
        return f"torchvision {torchvision().__version__}, torch {sys.modules['torch'].__version__}"

    def make(self) -> tuple[nn.Module, dict[str, str]]:
        """See `_ModuleNet.make`."""
        import torch

        parts = torchvision().models.video.resnet
        groups = [f"layer{number}" for number in (1, 2, 3, 4)]
        counts = [len({key.split(".")[1] for key in self.tensors if key.startswith(f"{group}.")}) for group in groups]
        with torch.device("meta"):
            module = parts.VideoResNet(
                block=parts.Bottleneck if "layer1.0.conv3.0.weight" in self.tensors else parts.BasicBlock,
                conv_makers=[self._conv(parts, group) for group in groups],
                layers=counts,
                stem=parts.R2Plus1dStem if "stem.3.weight" in self.tensors else parts.BasicStem,
            )
        if self.dialect == "vmz":
            for one in module.modules():
                if isinstance(one, torch.nn.BatchNorm3d):
                    one.eps = 1e-3
        blocks = [f"{group}.{block}" for group, count in zip(groups, counts) for block in range(count)]
        return module, {name: name for name in ("stem", *blocks)}

    def _conv(self, parts: Any, group: str) -> Any:
        """The convolution that a group is made of: factorised, 3D or 2D."""
        strided = 2 if f"{group}.0.conv3.0.weight" in self.tensors else 1
        kernel = self.tensors.get(f"{group}.0.conv{strided}.0.weight")
        if kernel is None:
            return parts.Conv2Plus1D
        return parts.Conv3DSimple if kernel.shape[2] > 1 else parts.Conv3DNoTemporal


class PytorchVideoNet(_ModuleNet):
    """pytorchvideo's `create_r2plus1d`, without the softmax of its head."""

    name = "pytorchvideo"

    @property
    def version(self) -> str:
        """The versions of pytorchvideo and torch. Raises UnavailableError when one cannot be imported."""
        from importlib.metadata import version

        _pytorchvideo()
        return f"pytorchvideo {version('pytorchvideo')}, torch {sys.modules['torch'].__version__}"

    def make(self) -> tuple[nn.Module, dict[str, str]]:
        """See `_ModuleNet.make`."""
        import torch

        groups = (1, 2, 3, 4)
        counts = tuple(
            len({key.split(".")[3] for key in self.tensors if key.startswith(f"blocks.{group}.res_blocks.")})
            for group in groups
        )
        depth = 2 + 3 * sum(counts)
        with torch.device("meta"):
            module = _pytorchvideo().create_r2plus1d(model_depth=depth, head_activation=None, dropout_rate=0.5)
        places = {
            f"layer{group}.{block}": f"blocks.{group}.res_blocks.{block}"
            for group, count in zip(groups, counts)
            for block in range(count)
        }
        return module, {"stem": "blocks.0", **places}


def _pytorchvideo() -> Any:
    torchvision()  # which it imports, and which may need help
    try:
        from pytorchvideo.models import r2plus1d
    except Exception as error:  # its own dependencies fail in their own ways
        raise UnavailableError(f"pytorchvideo is installed and cannot be imported ({error}).") from error
    return r2plus1d
