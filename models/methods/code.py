"""code: CoDe in CIAR's adaptation: the cloud decides the first floor(N*T) tokens, the device the rest."""

from models.pair import Pair
from simulator.protocol.methods import CodeSettings, DeviceOnlySettings, prefix_length

from .device_only import DeviceOnly


class Code(DeviceOnly):
    """Device-only decoding after a prefix from the cloud, without verification.

    Source: Chen et al., "Collaborative Decoding Makes Visual Auto-Regressive Modeling Efficient" (CoDe), as CIAR adapts it to
    next-token models (N = 0.3, cloud calls 30 %).
    """

    def __init__(self, settings: CodeSettings, pair: Pair) -> None:
        super().__init__(DeviceOnlySettings(), pair)
        self.prefix_length = prefix_length(settings.prefix_rate, pair.manifest.image_tokens)
