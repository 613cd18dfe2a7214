"""Images as PNG bytes, and conversion of any Pillow image to RGB."""

import io

import numpy as np
from PIL import Image

# Exceptions that Pillow and `rgb_of` raise for an image file that cannot be used.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def png_bytes(image: np.ndarray) -> bytes:
    """Return an image uint8 [H, W, 3] as the bytes of a PNG file; equal images give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=False, compress_level=6)
    return buffer.getvalue()


def rgb_of(picture: Image.Image) -> Image.Image:
    """Return an image in 8-bit RGB: transparent pixels on white, 16-bit grey scaled to 8 bits, an animation's first frame.

    Pillow's own conversion drops transparency, which exposes the hidden colours, and clips 16-bit values at 255.

    Raises:
        ValueError: 32-bit integers or floats, whose scale is unknown.
    """
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits ({picture.mode}) have no known scale; allowed: 8 or 16 bits a channel")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")
