"""Network families: canonical tensors and facts. No framework is imported here."""

from __future__ import annotations

from vidweights.families.base import Config, Family, Tensor
from vidweights.families.i3d import I3D, S3D
from vidweights.families.inception import INCEPTION
from vidweights.families.resnet import RESNET
from vidweights.families.resnet3d import RESNET3D

FAMILIES: dict[str, Family] = {family.name: family for family in (I3D, S3D, RESNET3D, INCEPTION, RESNET)}

__all__ = ["FAMILIES", "Config", "Family", "Tensor"]
