"""What the networks refuse as a clip, from its dtype and shape alone."""

from __future__ import annotations

import torch
from torch import Tensor

from vidweights.errors import InputError


def check_clip(x: Tensor, dtype: torch.dtype, channels: int, values: str = " in [-1, 1]") -> None:
    """Refuse a clip that does not fit a network.

    Args:
        x: what was given.
        dtype: of the network's weights.
        channels: that the network takes.
        values: the range that its clips have, as messages say it.

    Raises:
        InputError: what was found, what is expected, and the likely cause.
    """
    expected = f"expected floating-point clips (N, {channels}, T, H, W){values}"
    if not isinstance(x, Tensor):
        raise InputError(f"the clip is a {type(x).__name__}, not a torch.Tensor; {expected}")
    shape = tuple(x.shape)
    if not x.is_floating_point():
        scale = "with x / 127.5 - 1" if values else "as the weights' config.json states"
        advice = f"Scale 8-bit frames {scale}, or use vidweights.clips.ClipTransform."
        raise InputError(f"the clip is {_name(x.dtype)}; {expected}. {advice}")
    if x.ndim != 5:
        advice = " Add the batch axis with x[None]." if x.ndim == 4 and shape[0] == channels else ""
        raise InputError(f"the clip has {x.ndim} axes, {shape}; {expected}.{advice}")
    if shape[1] != channels:
        raise InputError(f"the clip has {shape[1]} channels, {shape}; {expected}.{_channel_advice(shape, channels)}")
    if 0 in shape[2:]:
        raise InputError(f"the clip is empty, {shape}; {expected}")
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise InputError(
            f"the clip is {_name(x.dtype)}, the network {_name(dtype)}; expected the same. "
            f"Convert the clip with x.to(torch.{_name(dtype)})."
        )


def _channel_advice(shape: tuple[int, ...], channels: int) -> str:
    if shape[4] == channels:
        return " The channels seem to stand last (NTHWC); reorder with x.permute(0, 4, 1, 2, 3)."
    if shape[2] == channels:
        return " The channels seem to stand third (NTCHW); reorder with x.transpose(1, 2)."
    if {shape[1], channels} == {2, 3}:
        return " An RGB network takes 3 channels, a flow network 2."
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
