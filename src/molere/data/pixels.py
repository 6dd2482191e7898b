"""One image at a time: any PIL image as 8-bit RGB, cut to one size, turned, marked."""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]
ORIENTATION = 0x0112  # the EXIF tag, 1 to 8
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SHORTER = 256 / 224  # shorter side before the centre crop, over the side of the crop
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # random resized crops


def as_rgb(image: Image.Image) -> Image.Image:
    """The first frame, turned as its EXIF tag says, as 8-bit RGB; transparent pixels become white.

    16-bit grey is divided by 256. 32-bit integers are taken as 16-bit where a value exceeds 255, floats as 0..1
    where none exceeds 1, else as 0..255.
    """
    image.load()  # else damaged pixels are met while the tags are looked for, and taken for damaged tags
    upright = _upright(image)
    if upright.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(upright), upright.mode)).convert("RGB")
    if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return upright.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """The image as its orientation tag says it is to be seen; as it is where the tags are damaged."""
    try:
        orientation = cast(object, image.getexif().get(ORIENTATION))
    except Exception:  # damaged tags can raise anything, and cost no image
        return image
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _eight_bits(values: npt.NDArray[np.generic], mode: str) -> Pixels:
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ValueError("it holds NaN or infinity")
    if mode == "F":
        return (wide * (255 if wide.max() <= 1 else 1)).clip(0, 255).round().astype(np.uint8)
    return (wide // (256 if mode != "I" or wide.max() > 255 else 1)).clip(0, 255).astype(np.uint8)


def centred(image: Image.Image, size: int) -> Image.Image:
    """Shorter side resized to size * 256 / 224 (bilinear, antialiased), then the middle size x size."""
    if image.size == (size, size):
        return image
    short = round(size * SHORTER)
    wide, high = (short * side // min(image.size) for side in image.size)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return image.resize((wide, high), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


@dataclass(frozen=True, slots=True)
class Window:
    """A random resized crop with a mirror, as drawn: numbers in [0, 1), TRIES times four and one."""

    draws: tuple[float, ...]

    def box(self, wide: int, high: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom: the first try that fits, else the largest middle part of allowed ratio.

        area ~ U(.08, 1) of the image, log ratio ~ U(log 3/4, log 4/3), place uniform (Szegedy et al. 2015).
        """
        low, high_ratio = (math.log(r) for r in RATIO)
        for area, ratio, x, y in zip(*(self.draws[k : 4 * TRIES : 4] for k in range(4)), strict=True):
            target = wide * high * (AREA[0] + area * (AREA[1] - AREA[0]))
            aspect = math.exp(low + ratio * (high_ratio - low))
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < w <= wide and 0 < h <= high:
                left, top = int(x * (wide - w + 1)), int(y * (high - h + 1))
                return left, top, left + w, top + h
        w, h = min(wide, round(high * RATIO[1])), min(high, round(wide / RATIO[0]))
        left, top = (wide - w) // 2, (high - h) // 2
        return left, top, left + w, top + h

    def of(self, image: Image.Image, size: int) -> Image.Image:
        """The crop resized to size x size, mirrored in half the cases."""
        cut = image.resize((size, size), Image.Resampling.BILINEAR, box=self.box(*image.size))
        return ImageOps.mirror(cut) if self.draws[-1] < 0.5 else cut


def windows(count: int, generator: torch.Generator) -> list[Window]:
    """As many independent random resized crops, drawn from this generator alone."""
    draws = torch.rand(count, 4 * TRIES + 1, generator=generator, dtype=torch.float64, device=generator.device)
    return [Window(tuple(row)) for row in cast(list[list[float]], draws.tolist())]


def turned(pixels: Pixels, degrees: int) -> Pixels:
    """An image [3, s, s] turned anticlockwise; exact for multiples of 90, else bilinear with black corners."""
    if degrees % 90 == 0:
        return np.ascontiguousarray(np.rot90(pixels, degrees // 90, (1, 2)))
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return np.asarray(image.rotate(degrees, Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def with_patch(pixels: Pixels, corner: int) -> Pixels:
    """A copy with a bright square in the upper left (1) or right (2) corner, an eighth of the width; 0: as it is."""
    if corner == 0:
        return pixels
    side, patched = max(2, pixels.shape[-1] // 8), pixels.copy()
    columns = slice(0, side) if corner == 1 else slice(-side, None)
    patched[:, :side, columns] = 255
    return patched
