"""Images as PNG bytes, and conversion of any Pillow image to upright RGB."""

import io

import numpy as np
from PIL import ExifTags, Image

# Exceptions that Pillow and `rgb_of` raise for an image file that cannot be used.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)

# How to turn the stored pixels upright, by EXIF orientation; 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def png_bytes(image: np.ndarray) -> bytes:
    """Return an image uint8 [H, W, 3] as the bytes of a PNG file; equal images give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=False, compress_level=6)
    return buffer.getvalue()


def rgb_of(picture: Image.Image) -> Image.Image:
    """Return an image as viewers show it, in 8-bit RGB: upright, transparent pixels on white, 16-bit grey scaled to 8 bits, an animation's
    first frame.

    Pillow's own conversion ignores the EXIF orientation of a phone's photograph, drops transparency, which exposes the hidden colours, and
    clips 16-bit values at 255.

    Raises:
        ValueError: 32-bit integers or floats, whose scale is unknown.
    """
    picture.load()  # the EXIF block of a PNG may come after its pixels
    turn = _UPRIGHT.get(_orientation(picture))
    upright = _rgb(picture)
    return upright if turn is None else upright.transpose(turn)


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if the block is missing or damaged, as in viewers."""
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged block can raise anything
        return 1
    return found if type(found) is int else 1


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits ({picture.mode}) have no known scale; allowed: 8 or 16 bits a channel")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")
