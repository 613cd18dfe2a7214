"""Shape of a transformer that predicts an image scale by scale: VAR.

Source: Tian et al., "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction" (VAR), its models of 256 pixels.
"""

from simulator.protocol.pairs import TransformerConfig

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
FFN_MATRICES = 2  # of a layer's plain feed-forward part
MODULATION = 6  # vectors that a layer projects from the class


class VarConfig(TransformerConfig):
    """Shape of VAR. Its caption is a class, one row of one number, and the first position holds it."""

    @property
    def scales(self) -> tuple[int, ...]:
        """Sides of the token maps, the smallest first."""
        return SCALES

    @property
    def positions(self) -> int:
        """Positions of a full sequence: the class stands in the first image token's."""
        return self.tokens
