"""What a batch of images goes through on its own device: normalisation, random crops and flips."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

from molere.errors import DataError

Augmentation: TypeAlias = Literal["none", "flip", "crop", "crop-flip"]
AUGMENTATIONS: tuple[str, ...] = get_args(Augmentation)


def augmented(
    x: Shaped[Tensor, "n c h w"], kind: str, padding: int, generator: torch.Generator
) -> Shaped[Tensor, "n c h w"]:
    """Images shifted by up to `padding` pixels, zeros outside ("crop"), mirrored in half the cases ("flip").

    In distribution: zero-padding by p, a uniform h x w crop of the (h + 2p) x (w + 2p) image, then a mirror.
    The draws (3 numbers per image, whatever the kind) are made where the generator lives, so a CPU generator
    gives the same images on every device.
    """
    if kind == "none":
        return x
    draws = torch.rand(3, len(x), generator=generator, device=generator.device).to(x.device)
    mirrored = (draws[2] < 0.5).to(torch.int64)
    if kind == "flip":
        return _cropped(x, torch.zeros_like(mirrored), mirrored, 0)
    shift = (draws[:2] * (2 * padding + 1)).to(torch.int64).clamp_(max=2 * padding)
    corner = shift[0] * (x.shape[3] + 2 * padding) + shift[1]
    return _cropped(pad(x, (padding,) * 4), corner, mirrored if kind == "crop-flip" else None, padding)


def _cropped(
    padded: Shaped[Tensor, "n c hp wp"],
    corner: Int[Tensor, " n"],
    mirrored: Int[Tensor, " n"] | None,
    padding: int,
) -> Shaped[Tensor, "n c h w"]:
    """The h x w window at flat offset `corner` of each padded image, read backwards where mirrored is 1.

    One gather: position (r, s) of the window is corner + r * wp + (w - 1 - s if mirrored else s).
    """
    n, c, hp, wp = padded.shape
    h, w = hp - 2 * padding, wp - 2 * padding
    window = torch.arange(h, device=padded.device)[:, None] * wp + torch.arange(w, device=padded.device)
    both = torch.stack((window, window.flip(1))).view(2, h * w)
    start = both[:1] if mirrored is None else both.index_select(0, mirrored)
    position = (start + corner[:, None])[:, None].expand(n, c, h * w)
    return padded.view(n, c, hp * wp).gather(2, position).view(n, c, h, w)


def normalisation(
    x: Shaped[Tensor, "n ..."], mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Float[Tensor, "1 c 1 1"], Float[Tensor, "1 c 1 1"]] | tuple[None, None]:
    """(x / 255 - mean) / std as x * scale + shift per channel; (None, None) for inputs used as they are."""
    if x.dtype != torch.uint8:
        if mean is not None or std is not None:
            raise DataError("mean and std are for uint8 images; pass those, or normalise the float array yourself")
        return None, None
    channels = x.shape[1]
    m, s = mean or (0.0,) * channels, std or (1.0,) * channels
    if not len(m) == len(s) == channels or min(s) <= 0:
        given = f"got mean={list(m)}, std={list(s)}"
        raise DataError(f"mean and std need one number per channel ({channels}), std positive; {given}")
    centre, spread = torch.tensor(m, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)
    scale, shift = (1 / (255 * spread)).view(1, -1, 1, 1), (-centre / spread).view(1, -1, 1, 1)
    return scale.to(x.device, torch.float32), shift.to(x.device, torch.float32)


def check_augmentation(x: Shaped[Tensor, "n ..."], augment: str, padding: int) -> None:
    """DataError unless the augmentation exists and suits the inputs."""
    if augment not in AUGMENTATIONS:
        raise DataError(f"augment must be one of {', '.join(AUGMENTATIONS)}; got {augment!r}")
    if augment != "none" and x.ndim != 4:
        given = f"x has shape {list(x.shape)}"
        raise DataError(f"augment={augment!r} needs images [N, C, H, W]; {given}: use augment='none'")
    if padding < 0:
        raise DataError(f"crop_padding must be 0 pixels or more; got {padding}")
