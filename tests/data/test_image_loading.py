"""Every odd kind of image file, made here: the right pixels or one clear error."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyptych.data import images
from polyptych.data.images import MAX_IMAGE_PIXELS, image_hash, load_image
from polyptych.errors import PolyptychError
from polyptych.schema import ImageRef


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = load_image(ImageRef(data=data))
    assert image.mode == "RGB"
    return np.asarray(image)


def noise(size: int = 64) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_rgb_is_unchanged() -> None:
    np.testing.assert_array_equal(pixels(encode(noise())), np.asarray(noise()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = noise(8).crop((0, 0, 8, 4))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels(encode(stored, exif=exif)), np.asarray(upright))


def test_unreadable_exif_does_not_cost_the_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encode(Image.new("RGB", (8, 4)), "JPEG", exif=exif))
    start = data.index(b"Exif") + 6
    data[start : start + 8] = b"garbage!"
    assert pixels(bytes(data)).shape == (4, 8, 3)


def test_cmyk() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    np.testing.assert_allclose(pixels(encode(red, "JPEG"))[0, 0], (255, 0, 0), atol=2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    grey = pixels(encode(Image.fromarray(values), kind))
    np.testing.assert_array_equal(grey[0, :, 0], [0, 1, 128, 255])


def test_32_bit_integers_that_hold_16_bits() -> None:
    values = np.array([[0, 32768, 65535]], dtype=np.int32)
    grey = pixels(encode(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(grey[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize("values", [np.float32([[0.0, 0.5]]), np.int32([[0, 70000]])])
def test_values_without_a_defined_white_are_refused(values: np.ndarray) -> None:
    with pytest.raises(PolyptychError, match=r"has values 0.* to .* no white is defined"):
        pixels(encode(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_put_on_white(mode: str) -> None:
    color = {"RGBA": (0, 0, 0), "LA": (0,)}[mode]
    image = Image.new(mode, (3, 1), (*color, 255))
    image.putpixel((1, 0), (*color, 0))
    image.putpixel((2, 0), (*color, 128))
    np.testing.assert_array_equal(pixels(encode(image))[0, :, 0], [0, 255, 127])


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(encode(image)), [[(255, 0, 0), (0, 0, 255)]])
    np.testing.assert_array_equal(
        pixels(encode(image, transparency=1)), [[(255, 0, 0), (255, 255, 255)]]
    )


def test_transparent_color_of_an_rgb_png() -> None:
    image = Image.new("RGB", (2, 1), (0, 0, 0))
    image.putpixel((1, 0), (9, 9, 9))
    np.testing.assert_array_equal(
        pixels(encode(image, transparency=(0, 0, 0))), [[(255, 255, 255), (9, 9, 9)]]
    )


def test_one_bit() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(encode(image))[0, :, 0], [0, 255])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "green")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_allclose(pixels(data)[0, 0], (255, 0, 0), atol=1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated_file(tmp_path: Path, kind: str) -> None:
    data = encode(noise(), kind)
    path = tmp_path / "half.img"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(PolyptychError, match=r"^a.jsonl line 3: image .*half.img ") as caught:
        load_image(ImageRef(path=str(path)), where="a.jsonl line 3")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_not_an_image(data: bytes) -> None:
    with pytest.raises(PolyptychError, match="image given as bytes"):
        load_image(ImageRef(data=data))


def test_missing_file_folder_and_null_byte(tmp_path: Path) -> None:
    with pytest.raises(PolyptychError, match=r"line 1: image .*no.png does not exist"):
        load_image(ImageRef(path=str(tmp_path / "no.png")), where="line 1")
    with pytest.raises(PolyptychError, match="cannot be read: Is a directory"):
        load_image(ImageRef(path=str(tmp_path)))
    with pytest.raises(PolyptychError, match="cannot be read"):
        load_image(ImageRef(path="a\0b"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [9_500, 40_000])  # below and above Pillow's own refusal
def test_decompression_bomb_names_both_numbers(side: int) -> None:
    bomb = encode(Image.new("1", (side, side)))
    assert len(bomb) < 250_000
    message = f"too large: {side * side} pixels, the limit is {MAX_IMAGE_PIXELS}"
    with pytest.raises(PolyptychError, match=message):
        load_image(ImageRef(data=bomb))


def test_changed_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(noise()))
    ref = ImageRef(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert load_image(ref).size == (64, 64)
    path.write_bytes(encode(noise(32)))
    with pytest.raises(PolyptychError, match=f"has changed: .* record says {ref.sha256}"):
        load_image(ref)


def test_hash_is_of_the_bytes_and_follows_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    ref = ImageRef(path=str(path))
    assert image_hash(ref) == hashlib.sha256(b"one").hexdigest()
    assert image_hash(ref) == image_hash(ImageRef(data=b"one"))
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert image_hash(ref) == hashlib.sha256(b"two").hexdigest()
    monkeypatch.setattr(images, "open", None, raising=False)  # known files are not read again
    assert image_hash(ref) == hashlib.sha256(b"two").hexdigest()
    with pytest.raises(PolyptychError, match="does not exist"):
        image_hash(ImageRef(path=str(tmp_path / "no.png")))
