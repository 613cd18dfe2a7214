"""Images as bytes, and pictures of any kind as RGB."""

import io

import numpy as np
from PIL import Image

# What reading a damaged file raises, see `rgb_of`.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def png_bytes(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG file; equal images give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=False, compress_level=6)
    return buffer.getvalue()


def rgb_of(picture: Image.Image) -> Image.Image:
    """A picture in 8-bit RGB: transparent pixels on white, 16-bit grey scaled to 8 bits, of an animation the first frame.

    Pillow's own conversion drops transparency, which shows the colour that it hides, and cuts 16 bits off at 255.

    Raises:
        ValueError: its numbers have no scale that is known (32-bit integers or floats).
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
