"""Reading pictures that may be corrupt, huge or not pictures at all: each failure is a cause and a sentence."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from npusim.errors import OutputError

MAX_PIXELS = 1 << 26
"""Ours: 8192 x 8192. A larger picture is set aside before it is decoded (a 10,000 x 10,000 one takes 300 MB)."""

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
_ORIENTATION = 0x0112


class UnusablePictureError(Exception):
    """A picture that cannot be part of a variant."""

    def __init__(self, cause: str, reason: str) -> None:
        super().__init__(reason)
        self.cause, self.reason = cause, reason


@contextmanager
def opened(path: Path, max_pixels: int = MAX_PIXELS) -> Iterator[Any]:
    """An opened picture whose header was read; decoding it in the block reports damage the same way.

    Raises:
        UnusablePictureError: missing, no picture, damaged, or more than `max_pixels`.
    """
    from PIL import Image, UnidentifiedImageError

    if not path.is_file() and path.exists():
        raise UnusablePictureError("unreadable", f"{path.name} is not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit: ours is below
            image = Image.open(path, formats=tuple(SUFFIXES))
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise UnusablePictureError(
                    "too many pixels",
                    f"{path.name} is {width} x {height} pixels, allowed are {max_pixels:,}; raise --max-pixels",
                )
            yield image
    except FileNotFoundError as error:
        raise UnusablePictureError("missing", f"{path.name} does not exist") from error
    except UnidentifiedImageError as error:
        kinds = ", ".join(SUFFIXES)
        raise UnusablePictureError("unreadable", f"{path.name} is not a picture ({kinds})") from error
    except Image.DecompressionBombError as error:
        raise UnusablePictureError(
            "too many pixels", f"{path.name} has more pixels than can be decoded safely ({error})"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise UnusablePictureError("unreadable", f"{path.name} is damaged ({error})") from error


def load(path: Path, max_pixels: int = MAX_PIXELS) -> Any:
    """The picture, decoded, upright, RGB.

    Raises:
        UnusablePictureError: see `opened`.
    """
    from PIL import ImageOps

    with opened(path, max_pixels) as image:
        image.load()
        upright = ImageOps.exif_transpose(image) if turned(image) else image
        return upright if upright.mode == "RGB" else upright.convert("RGB")


def turned(image: Any) -> bool:
    """Whether its EXIF data asks viewers to turn it. Trainers do not."""
    return int(image.getexif().get(_ORIENTATION, 1) or 1) != 1


def save(image: Any, path: Path) -> str:
    """Write a picture by its suffix: JPEG at quality 95 without colour subsampling, PNG, lossless WebP. Returns its SHA-256.

    A picture counts once its record is in the manifest; one that a kill cut off is written again.

    Raises:
        OutputError: the disk refused.
    """
    options: dict[str, dict[str, Any]] = {
        ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
        ".png": {"format": "PNG", "compress_level": 4},
        ".webp": {"format": "WEBP", "lossless": True},
    }
    buffer = io.BytesIO()
    image.save(buffer, **options[path.suffix])
    data = buffer.getbuffer()
    try:
        try:
            path.write_bytes(data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    except OSError as error:
        raise OutputError(
            f"{path}: could not be written ({error.strerror or error}); records finished before are kept: free some space, "
            "then run the same command again to go on"
        ) from error
    return hashlib.sha256(data).hexdigest()


def suffix_for(path: Path) -> str:
    """What a changed picture is stored as: as its source where that is a format to keep, else PNG."""
    known = path.suffix.lower()
    return {".jpeg": ".jpg"}.get(known, known) if known in (".jpg", ".jpeg", ".png", ".webp") else ".png"


def as_png(path: Path, max_pixels: int = MAX_PIXELS) -> bytes:
    """A picture of any kind as PNG bytes, for viewers that do not know its kind.

    Raises:
        UnusablePictureError: see `opened`.
    """
    buffer = io.BytesIO()
    load(path, max_pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
