"""A random pair of the smallest useful size, for tests and rehearsals."""

from pathlib import Path

import torch
from torch import nn

from models.device import DeviceModel
from models.eagle import EagleDrafter, drafter_config
from models.pair import Pair, load_pair, write_pair
from models.phi import IntervalProjection
from models.scenes import WORDS
from models.text import WordEncoder
from models.transformer import Transformer
from models.vq import VQConfig, VQModel
from simulator.protocol.pairs import TransformerConfig


def make_tiny_pair(
    path: Path,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    grid: int = 4,
    codebook_size: int = 64,
    device_noise: float = 0.05,
) -> Pair:
    """Write a random pair of the smallest useful size to `path` and load it, in a fraction of a second.

    It has grid x grid tokens of 8 x 8 pixels, a cloud of 2 layers and width 16, and the captions of the scenes pair. The device is the
    cloud's first layer with noise of standard deviation `device_noise`, so that the two agree often but not always.
    """
    generator = torch.Generator().manual_seed(seed)

    def randomise(module: nn.Module, std: float) -> None:
        with torch.no_grad():
            for key, parameter in module.named_parameters():
                if not key.endswith("norm.weight"):
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=std)

    text = WordEncoder.build(WORDS)
    shape = TransformerConfig(2, 2, 16, 32, codebook_size, text.slots, text.caption_dim, grid)
    vq = VQConfig(
        codebook_size=codebook_size,
        codebook_dim=8,
        ch=32,
        encoder_ch_mult=(1, 1),
        decoder_ch_mult=(1, 1),
        z_channels=32,
        num_res_blocks=1,
        patch=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, cloud = VQModel(vq), Transformer(shape)
        randomise(cloud, 0.35)
        with torch.no_grad():  # keep the second layer's contribution small
            for key in ("layers.1.attention.wo.weight", "layers.1.feed_forward.w2.weight"):
                cloud.get_parameter(key).mul_(0.2)
        device = DeviceModel.of_cloud(cloud)
        device.transformer.layers[0].load_state_dict(cloud.layers[0].state_dict())
        randomise(device, device_noise)
        phi = IntervalProjection(shape.dim, shape.vocab_size, bottleneck=8)
        randomise(phi, 0.05)
        drafter = EagleDrafter(drafter_config(shape))
        # The token's embedding, scaled to the size of a feature, predicts the next feature to some degree.
        with torch.no_grad():
            drafter.fc.weight[:, : shape.dim] += torch.eye(shape.dim) / 0.35
            drafter.fc.weight[:, shape.dim :] += 0.2 * torch.eye(shape.dim)
    write_pair(path, "tiny", text, tokenizer, cloud, device, phi, drafter, {})
    return load_pair(path, dtype=dtype)
