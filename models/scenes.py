"""Captioned scenes: the images on which the pair `scenes` is trained and evaluated.

A scene is one to three shaded solids on a textured background with a gradient, 128 x 128 pixels, with an English caption.
There is any number of scenes: scene `index` of a seed is drawn from `stream(seed, "scene", index)`, in any order and any process.
Scenes combine smooth areas and sharp borders, so that tokens differ widely in how hard they are to predict.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from simulator.core.rng import stream

IMAGE_SIZE = 128

SIZES = {"small": (12.0, 15.0), "large": (21.0, 25.0)}  # circumscribed radius, pixels, drawn from this range
COLORS = {
    "red": (208, 44, 40),
    "green": (48, 168, 66),
    "blue": (44, 84, 210),
    "yellow": (238, 208, 48),
    "orange": (238, 130, 30),
    "purple": (142, 58, 178),
    "cyan": (58, 198, 216),
    "white": (236, 236, 236),
}
SHAPES = ("sphere", "cube", "cone", "cylinder", "ring", "star")
PLACES = {  # caption words -> (column, row) of the nominal centre, in pixels
    "at the top left": (31.0, 31.0),
    "at the top": (64.0, 31.0),
    "at the top right": (97.0, 31.0),
    "at the left": (31.0, 64.0),
    "in the center": (64.0, 64.0),
    "at the right": (97.0, 64.0),
    "at the bottom left": (31.0, 97.0),
    "at the bottom": (64.0, 97.0),
    "at the bottom right": (97.0, 97.0),
}
TEXTURES = ("plain", "striped", "checkered", "dotted", "cloudy")
BACKGROUND_COLORS = {
    "gray": (132, 134, 138),
    "brown": (124, 96, 72),
    "navy": (42, 54, 94),
    "olive": (112, 118, 72),
    "pink": (204, 164, 172),
    "teal": (62, 116, 118),
}
NOISE_SIGMA = (3.0, 6.0)  # of 255, one draw per image
TEXTURE_AMPLITUDE = 12.0  # of 255
GRADIENT_AMPLITUDE = 22.0  # of 255, from the middle to the edge

BACKGROUND, OBJECT, BORDER = 0, 1, 2  # values of region_map
_BORDER_PX = 2.0
_LIGHT = np.array([-0.48, -0.62, 0.62], dtype=np.float32)  # towards the light: from the top left, out of the image
_ROWS, _COLUMNS = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32)


def _vocabulary() -> tuple[str, ...]:
    phrases = [*SIZES, *COLORS, *SHAPES, *PLACES, *TEXTURES, *BACKGROUND_COLORS, "a", "and", "on", "background"]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


WORDS = _vocabulary()  # every word that a caption can contain, sorted


@dataclass(frozen=True)
class SceneObject:
    """One solid: the words that describe it, and its exact position, circumscribed radius and rotation."""

    shape: str
    color: str
    size: str
    place: str
    column_px: float
    row_px: float
    radius_px: float
    angle_rad: float

    @property
    def phrase(self) -> str:
        return f"a {self.size} {self.color} {self.shape} {self.place}"


@dataclass(frozen=True)
class Background:
    """The words that describe the background, and the parameters of its gradient and texture."""

    color: str
    texture: str
    angle_rad: float  # of the texture
    period_px: float
    gradient_rad: float  # towards the brighter side
    texture_seed: int  # of the phases and of the cloudy texture's waves

    @property
    def phrase(self) -> str:
        return f"on a {self.texture} {self.color} background"


@dataclass(frozen=True)
class Scene:
    """One to three objects, drawn in order, on a background."""

    objects: tuple[SceneObject, ...]
    background: Background

    @property
    def caption(self) -> str:
        """Lower-case English, at most 32 words, all of them in `WORDS`."""
        return " and ".join(item.phrase for item in self.objects) + " " + self.background.phrase


def scene(seed: int, index: int) -> Scene:
    """Draw scene `index` of `seed`. Objects have different places, and centres at least 0.95 times the sum of their radii apart."""
    rng = stream(seed, "scene", index)
    wanted = int(rng.choice(3, p=(0.3, 0.45, 0.25))) + 1
    objects: list[SceneObject] = []
    for _ in range(40):
        candidate = _draw_object(rng)
        if all(_apart(candidate, other) for other in objects):
            objects.append(candidate)
        if len(objects) == wanted:
            break
    return Scene(tuple(objects), _draw_background(rng))


def captions(seed: int, count: int) -> list[str]:
    """Return the captions of scenes 0 .. count-1 of `seed`."""
    return [_caption(seed, index) for index in range(count)]


@lru_cache(maxsize=1 << 14)  # calibration needs the same captions for every method
def _caption(seed: int, index: int) -> str:
    return scene(seed, index).caption


def image(seed: int, index: int) -> np.ndarray:
    """Return scene `index` of `seed`, rendered with its own noise, uint8 [128, 128, 3]."""
    return render(scene(seed, index), stream(seed, "scene.noise", index))


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Render a scene as RGB, uint8 [128, 128, 3]. `rng` draws only the pixel noise; everything else follows from the scene."""
    canvas = _render_background(scene.background)
    for item in scene.objects:
        _draw_shadow(canvas, item)
    for item in scene.objects:
        _draw_solid(canvas, item)
    sigma = rng.uniform(*NOISE_SIGMA)
    canvas += np.float32(sigma) * rng.standard_normal(canvas.shape, dtype=np.float32)
    return (canvas + np.float32(0.5)).clip(0, 255).astype(np.uint8)


def region_map(scene: Scene) -> np.ndarray:
    """Return the region of each pixel, uint8 [128, 128]: BACKGROUND, OBJECT, or BORDER (within 2 pixels of a visible outline)."""
    regions = np.full((IMAGE_SIZE, IMAGE_SIZE), BACKGROUND, dtype=np.uint8)
    for item in scene.objects:
        window, x, y = _window(item)
        distance, _, _ = _SOLIDS[item.shape](x, y)
        distance_px = distance * item.radius_px
        region = regions[window]
        region[distance_px < _BORDER_PX] = OBJECT
        region[np.abs(distance_px) <= _BORDER_PX] = BORDER
    return regions


def _draw_object(rng: np.random.Generator) -> SceneObject:
    size, place = _one_of(rng, tuple(SIZES)), _one_of(rng, tuple(PLACES))
    column_px, row_px = np.array(PLACES[place]) + rng.uniform(-5, 5, 2)
    return SceneObject(
        shape=_one_of(rng, SHAPES),
        color=_one_of(rng, tuple(COLORS)),
        size=size,
        place=place,
        column_px=float(column_px),
        row_px=float(row_px),
        radius_px=float(rng.uniform(*SIZES[size])),
        angle_rad=float(rng.uniform(-0.25, 0.25)),
    )


def _draw_background(rng: np.random.Generator) -> Background:
    return Background(
        color=_one_of(rng, tuple(BACKGROUND_COLORS)),
        texture=_one_of(rng, TEXTURES),
        angle_rad=float(rng.uniform(0, np.pi)),
        period_px=float(rng.uniform(16, 26)),
        gradient_rad=float(rng.uniform(0, 2 * np.pi)),
        texture_seed=int(rng.integers(2**31)),
    )


def _one_of(rng: np.random.Generator, names: Sequence[str]) -> str:
    """Draw the same name as `rng.choice(names)`, without converting the names to an array."""
    return names[int(rng.integers(len(names)))]


def _apart(one: SceneObject, other: SceneObject) -> bool:
    gap = np.hypot(one.column_px - other.column_px, one.row_px - other.row_px)
    return one.place != other.place and bool(gap >= 0.95 * (one.radius_px + other.radius_px))


def _render_background(background: Background) -> np.ndarray:
    """Return the background, float32 [128, 128, 3]."""
    half = IMAGE_SIZE / 2
    along = np.cos(background.gradient_rad) * (_COLUMNS - half) + np.sin(background.gradient_rad) * (_ROWS - half)
    level = np.float32(GRADIENT_AMPLITUDE / half) * along + np.float32(TEXTURE_AMPLITUDE) * _texture(background)
    color = np.array(BACKGROUND_COLORS[background.color], dtype=np.float32)
    return np.asarray(color + level[..., None].astype(np.float32))


def _texture(background: Background) -> np.ndarray:
    """Return the texture, float32 [128, 128], in about -1..1; zeros for a plain background."""
    rng = stream(background.texture_seed, "texture")
    phase = rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
    wave = np.float32(2 * np.pi / background.period_px)
    cos, sin = np.float32(np.cos(background.angle_rad)), np.float32(np.sin(background.angle_rad))
    across = wave * (cos * _COLUMNS + sin * _ROWS) + phase[0]
    along = wave * (cos * _ROWS - sin * _COLUMNS) + phase[1]
    if background.texture == "striped":
        return np.asarray(np.tanh(2.5 * np.sin(across)))
    if background.texture == "checkered":
        return np.asarray(np.tanh(4.0 * np.sin(0.8 * across) * np.sin(0.8 * along)))
    if background.texture == "dotted":
        return np.asarray(np.tanh(3.0 * (np.cos(across) + np.cos(along) - 0.9)))
    if background.texture == "cloudy":
        directions = rng.uniform(0, 2 * np.pi, 5)
        frequencies = 2 * np.pi / rng.uniform(30, 70, 5)
        phases = rng.uniform(0, 2 * np.pi, 5)
        clouds = np.zeros_like(across)
        for d, f, p in zip(directions, frequencies, phases, strict=True):
            clouds += np.sin(np.float32(f * np.cos(d)) * _COLUMNS + np.float32(f * np.sin(d)) * _ROWS + np.float32(p))
        return np.asarray(np.float32(0.6) * clouds)
    return np.zeros_like(across)


def _window(item: SceneObject) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Return the part of the image that an object can cover, and the object's coordinates x and y there (unit radius, y down, rotated)."""
    reach = item.radius_px + _BORDER_PX + 2
    low_row, high_row = max(int(item.row_px - reach), 0), min(int(item.row_px + reach) + 1, IMAGE_SIZE)
    low_column, high_column = max(int(item.column_px - reach), 0), min(int(item.column_px + reach) + 1, IMAGE_SIZE)
    window = (slice(low_row, high_row), slice(low_column, high_column))
    dx = (_COLUMNS[window] - np.float32(item.column_px)) / np.float32(item.radius_px)
    dy = (_ROWS[window] - np.float32(item.row_px)) / np.float32(item.radius_px)
    cos, sin = np.float32(np.cos(item.angle_rad)), np.float32(np.sin(item.angle_rad))
    return window, cos * dx + sin * dy, cos * dy - sin * dx


def _draw_shadow(canvas: np.ndarray, item: SceneObject) -> None:
    """Draw a soft shadow below and to the right of the object."""
    dx = (_COLUMNS[0] - np.float32(item.column_px + 0.25 * item.radius_px)) / np.float32(item.radius_px)
    dy = (_ROWS[:, 0] - np.float32(item.row_px + 0.35 * item.radius_px)) / np.float32(item.radius_px)
    shade = np.exp(-1.6 * dy**2)[:, None] * np.exp(-1.6 * dx**2)[None, :]
    canvas *= (1 - np.float32(0.4) * shade)[..., None]


def _draw_solid(canvas: np.ndarray, item: SceneObject) -> None:
    window, x, y = _window(item)
    distance, shade, shine = _SOLIDS[item.shape](x, y)
    coverage = np.clip(0.5 - distance * np.float32(item.radius_px), 0, 1)[..., None]
    color = np.array(COLORS[item.color], dtype=np.float32)
    surface = color * shade[..., None] + np.float32(190.0) * shine[..., None]
    canvas[window] += coverage * (np.minimum(surface, 255) - canvas[window])


def _lit(nx: np.ndarray, ny: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Lambert shade and specular shine of a surface with unit normals (x right, y down, z towards the viewer)."""
    nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0))
    cosine = nx * _LIGHT[0] + ny * _LIGHT[1] + nz * _LIGHT[2]
    shine = np.maximum(2 * cosine * nz - _LIGHT[2], 0)  # z of the reflected light: the viewer looks along z
    return np.float32(0.42) + np.float32(0.68) * np.maximum(cosine, 0), shine**12


# Each solid returns the distance to its outline (negative inside, unit radius), its shade (factor of the colour) and its shine, shaped
# like x.


def _ellipse(
    x: np.ndarray, y: np.ndarray, half_width: float | np.float32, half_height: float | np.float32
) -> np.ndarray:
    """Return the approximate distance to an ellipse around the origin: its level function divided by the norm of its gradient."""
    a, b = np.float32(half_width), np.float32(half_height)
    level = np.sqrt((x / a) ** 2 + (y / b) ** 2)
    return np.asarray(level * (level - 1) / np.maximum(np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2), np.float32(1e-6)))


def _sphere(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r = np.sqrt(x * x + y * y)
    shrink = 0.96 / np.maximum(r, 0.96)
    return r - np.float32(0.96), *_lit(x * shrink / np.float32(0.96), y * shrink / np.float32(0.96))


def _ring(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tube, middle = np.float32(0.26), np.float32(0.72)
    r = np.sqrt(x * x + y * y) + np.float32(1e-6)
    across = np.clip((r - middle) / tube, -1, 1)
    return np.abs(r - middle) - tube, *_lit(across * x / r, across * y / r)


def _cube(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seen from above a corner: a hexagon with three faces."""
    side = np.float32(0.8660254)
    distance = np.maximum(np.maximum(np.abs(x), np.abs(0.5 * x + side * y)), np.abs(0.5 * x - side * y)) - np.float32(
        0.84
    )
    top = y < -np.abs(x) * np.float32(0.57735)
    shade = np.where(top, np.float32(1.1), np.where(x < 0, np.float32(0.82), np.float32(0.5)))
    return distance, shade - np.float32(0.06) * y, np.zeros_like(x)


def _cone(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tip up, on a round base."""
    half_width = np.float32(0.78) * (y + np.float32(0.96)) / np.float32(1.6)
    sides = (np.abs(x) - half_width) * np.float32(0.899)  # horizontal gap times the cosine of the slope
    distance = np.where(y > 0.6, _ellipse(x, y - np.float32(0.6), 0.78, 0.3), sides)
    nx = np.clip(x / np.maximum(half_width, np.float32(0.08)), -1, 1) * np.float32(0.9)
    return distance, *_lit(nx, np.full_like(nx, -0.25))


def _cylinder(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Upright, with the round top seen from above."""
    half_width, half_height, rim = np.float32(0.62), np.float32(0.6), np.float32(0.2)
    top, bottom = _ellipse(x, y + half_height, half_width, rim), _ellipse(x, y - half_height, half_width, rim)
    body = np.abs(x) - half_width
    distance = np.where(y < -half_height, top, np.where(y > half_height, bottom, body))
    shade, shine = _lit(np.clip(x / half_width, -1, 1) * np.float32(0.95), np.full_like(x, -0.1))
    return distance, np.where(top < 0, np.float32(1.12), shade), np.where(top < 0, np.float32(0), shine)


def _star(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Five points, each with a lit and a dark facet."""
    sector = np.float32(2 * np.pi / 5)
    angle = np.arctan2(x, -y)  # 0 = the upper point
    nearest = np.round(angle / sector) * sector
    r = np.sqrt(x * x + y * y)
    away = angle - nearest
    # The outline between a point (r = 1, angle 0) and the next notch (r = 0.46, angle = half a sector) is a straight line.
    notch_x, notch_y = 0.46 * np.sin(np.pi / 5), 0.46 * np.cos(np.pi / 5)
    length = np.hypot(notch_x, 1 - notch_y)
    along, across = r * np.cos(away), r * np.abs(np.sin(away))
    distance = (across * np.float32((1 - notch_y) / length)) + (along - 1) * np.float32(notch_x / length)
    # Facets slope to both sides of the ridge from the centre to the point.
    side = np.sign(away)
    facet = nearest + side * np.float32(np.pi / 2)
    shade, _ = _lit(np.float32(0.6) * np.sin(facet), -np.float32(0.6) * np.cos(facet))
    return distance, shade, np.zeros_like(x)


_SOLIDS = {"sphere": _sphere, "cube": _cube, "cone": _cone, "cylinder": _cylinder, "ring": _ring, "star": _star}
