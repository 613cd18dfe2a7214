"""Shape of a transformer that predicts an image scale by scale: VAR.

Source: Tian et al., "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction" (VAR), models for 256 and 512
pixels.
"""

from simulator.protocol.pairs import TransformerConfig

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # of 256 pixels
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
OF_GRID = {scales[-1]: scales for scales in (SCALES, SCALES_512)}
FFN_MATRICES = 2  # of the plain feed-forward part of a layer
MODULATION = 6  # vectors per layer that are projected from the class


class VarConfig(TransformerConfig):
    """Shape of VAR. Its caption is a class, one row of one number, in the first position.

    Attributes:
        projected: number of vectors that each layer projects from the class.
    """

    projected = MODULATION

    @property
    def scales(self) -> tuple[int, ...]:
        """Sides of the token maps, the smallest first."""
        return OF_GRID[self.grid]

    @property
    def positions(self) -> int:
        """Positions of a full sequence: the class has the position of the first image token."""
        return self.tokens


class SharedVarConfig(VarConfig):
    """Shape of VAR-d36, whose layers share one projection of the class and add their own vectors."""

    projected = 0
