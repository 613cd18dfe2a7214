"""The device's model: a decoder of the cloud's shape with one layer, and CIAR's Inter-Head on top.

Source: CIAR section 3.2. The centre half of the Inter-Head is the decoder's own output matrix. The radius half is one matrix per loss
variant (see models/train/losses.py).
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from models.interval import RadiusHead, inter_fuse
from models.llama import decoder
from models.transformer import Transformer
from simulator.protocol.pairs import TransformerConfig

BOUNDS = ("quantile", "quantile-no-dro", "inter-dro")  # the first is the default


class DeviceModel(nn.Module):
    """`transformer` computes hidden states and centre logits; `radii[bounds]` computes the radius of every token's logit."""

    def __init__(self, config: TransformerConfig, bounds: Sequence[str] = BOUNDS, classes: int = 0) -> None:
        """Build the model with initial weights.

        Args:
            config: shape of the decoder.
            bounds: names of the radius matrices.
            classes: see `Transformer`.
        """
        super().__init__()
        self.config = config
        self.transformer = decoder(config, classes)
        self.radii = nn.ModuleDict({name: RadiusHead(config.dim, config.vocab_size) for name in bounds})

    @classmethod
    def of_cloud(cls, cloud: Transformer, bounds: Sequence[str] = BOUNDS) -> "DeviceModel":
        """Return a device model to distil from `cloud`.

        Embeddings, final norm and output matrix are the cloud's. The layer has random initial weights: it learns faster than a copy of
        the cloud's first layer, which relies on the layers after it.
        """
        device = cls(replace(cloud.config, n_layer=1), bounds, cloud.classes)
        shared = {key: value for key, value in cloud.state_dict().items() if not key.startswith("layers.")}
        device.transformer.load_state_dict(shared, strict=False)
        return device

    def centre(self, hidden: Tensor) -> Tensor:
        """Return the centre logits c = W_c h, [..., D] -> [..., V], float32 or wider."""
        return self.transformer.logits(hidden)

    def radius(self, hidden: Tensor, bounds: str = BOUNDS[0]) -> Tensor:
        """Return the radius r = softplus(W_r h), [..., D] -> [..., V], float32 or wider."""
        radius: Tensor = self.radii[bounds](hidden)
        return radius

    def interval(self, hidden: Tensor, guided: Tensor, bounds: str = BOUNDS[0]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the centre logits and the probability interval around them.

        The head is linear, so guiding hidden states equals guiding logits.

        Args:
            hidden: [..., D], final-norm hidden states of the conditional row; the radius is computed from them (assumption A5).
            guided: [..., D], guided hidden states h_u + s (h_c - h_u); the centre is computed from them.
            bounds: name of the radius matrix.

        Returns:
            Centre, lower and upper bounds, each [..., V].
        """
        centre = self.centre(guided)
        return centre, *inter_fuse(centre, self.radius(hidden, bounds))
