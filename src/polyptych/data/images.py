"""Image files to 8-bit RGB pictures: every odd file either becomes the right picture or an error.

What is done, in this order: the first frame of an animation, the EXIF orientation, 16-bit grey
scaled (not clipped) to 8 bits, transparency put on white, every other mode (palette, CMYK, 1-bit)
converted by Pillow. Color profiles are ignored.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, ImageOps

from polyptych.errors import PolyptychError
from polyptych.schema import ImageRef

MAX_IMAGE_PIXELS = 1024**3 // 12
"""Pixels above which an image is refused: a quarter of a gigabyte of RGB (89,478,485 pixels)."""

_MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


def load_image(ref: ImageRef, *, where: str = "") -> Image.Image:
    """Decode an image as RGB.

    Args:
        ref: The image; a ``sha256`` it carries is checked against the file.
        where: File and line or id that names the image, for the error message.

    Returns:
        The first frame, upright, in mode ``RGB``.

    Raises:
        PolyptychError: For a missing, truncated, changed or too large file, or none Pillow knows.
    """
    place = f"{where}: " if where else ""
    name = f"{place}image {ref.path or 'given as bytes'}"
    data = _read(ref, name)
    if ref.sha256 is not None:
        found = hashlib.sha256(data).hexdigest()
        if found != ref.sha256.lower():
            raise PolyptychError(
                f"{name} has changed: sha256 {found} but the record says {ref.sha256}"
            )
    with _open(data, name) as image:
        _check_size(image.width * image.height, name)
        try:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), name)
        except PolyptychError:
            raise
        except Exception as error:  # decoders of broken files raise anything
            raise PolyptychError(f"{name} cannot be decoded: {error}") from error


def read_image_bytes(ref: ImageRef, *, where: str = "") -> bytes:
    """The encoded file of an image, as it is.

    Raises:
        PolyptychError: When it cannot be read.
    """
    place = f"{where}: " if where else ""
    return _read(ref, f"{place}image {ref.path or 'given as bytes'}")


def image_hash(ref: ImageRef) -> str:
    """SHA-256 of the encoded file: the key under which features of an image are cached.

    A file is hashed once as long as its modification time and size stay the same.

    Raises:
        PolyptychError: When the file cannot be read.
    """
    if ref.path is None:
        return hashlib.sha256(ref.data or b"").hexdigest()
    try:
        status = os.stat(ref.path)
        return _file_hash(ref.path, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError) as error:
        return _unreadable(f"image {ref.path}", error)


@lru_cache(maxsize=1 << 17)
def _file_hash(path: str, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(ref: ImageRef, name: str) -> bytes:
    if ref.path is None:
        return ref.data or b""
    try:
        return Path(ref.path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        return _unreadable(name, error)


def _unreadable(name: str, error: Exception) -> NoReturn:
    if isinstance(error, FileNotFoundError):
        raise PolyptychError(f"{name} does not exist") from error
    reason = getattr(error, "strerror", None) or error
    raise PolyptychError(f"{name} cannot be read: {reason}") from error


def _open(data: bytes, name: str) -> Image.Image:
    """Read the header only: no pixel is decoded before the size is known."""
    try:
        with warnings.catch_warnings():
            # Pillow warns above its own limit; ours is checked right after, in one clear line.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        _check_size(int(pixels[0]) if pixels else 0, name)
        raise PolyptychError(f"{name} is too large: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise PolyptychError(f"{name} is not an image file that Pillow can read") from error
    except Exception as error:
        raise PolyptychError(f"{name} cannot be decoded: {error}") from error


def _check_size(pixels: int, name: str) -> None:
    if pixels > MAX_IMAGE_PIXELS:
        raise PolyptychError(
            f"{name} is too large: {pixels} pixels, the limit is {MAX_IMAGE_PIXELS}"
        )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in (*_MODES_16_BIT, "I", "F"):
        return _grey_to_8_bits(image, name).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _grey_to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale 0..65535 to 0..255; Pillow's own ``convert`` would clip at 255."""
    values = np.asarray(image)
    if image.mode not in _MODES_16_BIT and (
        image.mode == "F" or values.min() < 0 or values.max() > 65535
    ):
        raise PolyptychError(
            f"{name} has values {values.min()} to {values.max()} in mode {image.mode}, "
            "for which no white is defined; save it with 8 or 16 bits"
        )
    return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
