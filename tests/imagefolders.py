"""Small folders of images, written as people have them, for tests."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def picture(seed: int, wide: int = 20, high: int = 16) -> Pixels:
    """A smooth coloured image [high, wide, 3], so that resizing and JPEG leave it recognisable."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return np.asarray(small.resize((wide, high), Image.Resampling.BICUBIC))


def write(path: Path, pixels: Pixels) -> Path:
    """The image in the format of the suffix, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def class_folders(root: Path, classes: tuple[str, ...] = ("ant", "bee"), each: int = 5) -> Path:
    """root/CLASS/0.png, ...; a different picture in each."""
    for c, name in enumerate(classes):
        for i in range(each):
            write(root / name / f"{i}.png", picture(100 * c + i))
    return root


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()
