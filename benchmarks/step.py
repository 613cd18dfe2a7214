"""Time of one decoding step of a catalogue model and of its one-layer device form, at their true shape with random weights.

    python -m benchmarks.step llamagen-xl
    python -m benchmarks.step llamagen-xl --train device --images 2    # a training step of `ciar-sim train device` instead

Times a step of two rows (guidance) with an empty and a full cache, a small tree of drafts, the caption encoder and the image decoder. Each
is timed once, after a warm-up pass. `ciar-sim profile --model` times the whole table with which a scenario is priced. With one CPU thread
the time is CPU time.

A training step is forward and backward pass, AdamW and moving average with the command's settings; the cloud's weights stay in memory, as
they do there. The peak of memory is that of the process on a CPU, and of torch's tensors on a GPU.
"""

import resource
import time

import click
import torch
from torch import Tensor, nn

from models.device import BOUNDS, DeviceModel
from models.profile import Sizes, config_of, measure_model, random_weights
from models.train.distil import DistilSettings, DistilStage
from models.train.loop import moved
from models.train.phi import PhiConfig, PhiLoop, PhiStage
from models.train.sequences import Batch
from models.transformer import Transformer
from simulator.core.errors import CiarSimError
from simulator.pricing import catalogue
from simulator.pricing.profile import PassTable

STEP = Sizes(rows=(2,), new_tokens=(1,), verified=(4,))


@click.command()
@click.argument("model")
@click.option("--torch-device", default="cpu", show_default=True)
@click.option(
    "--train", "stage", type=click.Choice(["device", "phi"]), help="Time a training step of this model instead."
)
@click.option("--images", type=click.IntRange(min=1), default=1, show_default=True, help="Images of a training step.")
def main(model: str, torch_device: str, stage: str | None, images: int) -> None:
    try:
        if stage is not None:
            click.echo(training_step(model, stage, images, torch_device))
            return
        found = measure_model(model, torch.device(torch_device), sizes=STEP, budget_s=0.0)
    except CiarSimError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{model}, {found.dtype}, {found.threads} threads, {found.hardware}")
    for role, passes in found.passes.items():
        click.echo(f"{role}, a step: {_line(passes)}")
    for role, passes in found.verify.items():
        click.echo(f"{role}, a tree of {STEP.verified[0]}: {_line(passes)}")
    for kind, seconds in found.compute_seconds.items():
        click.echo(f"{kind}: {seconds:.4g} s")


class RandomOutputs:
    """Random images of a model in place of `models.train.cloud_outputs.CloudOutputs`."""

    def __init__(self, cloud: Transformer) -> None:
        self.config = cloud.config

    def batch(self, stage: str, step: int, size: int, null_captions: float = 0.0) -> Batch:
        c = self.config
        caption, mask = torch.randn(size, c.caption_slots, c.caption_dim), torch.ones(size, c.caption_slots).bool()
        tokens, none = torch.randint(c.vocab_size, (size, c.tokens)), torch.zeros(size).bool()
        return Batch(tokens, caption, mask, none, torch.zeros(size, 3, 0).long())

    def with_states(self, stage: str, step: int, size: int) -> tuple[Batch, Tensor]:
        return self.batch(stage, step, size), torch.randn(size, self.config.tokens, self.config.dim)


def training_step(name: str, kind: str, images: int, torch_device: str) -> str:
    """Run two training steps of a stage, `device` or `phi`, and return a line with the second's time and the peak of memory.

    Raises ComputeError if the catalogue has no such model.
    """
    on_gpu = torch.device(torch_device).type == "cuda"
    config = config_of(catalogue.model(name))
    cloud = random_weights(Transformer(config), torch.float32).to(torch_device)
    cloud.recompute = True
    settings = DistilSettings(guidance=7.5, batch_images=images)
    data = RandomOutputs(cloud)
    stage: DistilStage | PhiStage
    if kind == "device":
        stage = DistilStage(settings, cloud, data)  # type: ignore[arg-type]  # it reads batches and states alone
    else:
        phi = PhiConfig(
            training=PhiLoop.model_validate(settings.loop(1)),
            batch_images=images,
            positions=settings.positions,
            guidance=settings.guidance,
            null_captions=0.0,
        )
        stage = PhiStage(phi, cloud, random_weights(DeviceModel.of_cloud(cloud, BOUNDS), torch.float32), data)
    for module in (stage.model, *(value for value in vars(stage).values() if isinstance(value, nn.Module))):
        module.to(torch_device)
    parameters = [parameter for parameter in stage.model.parameters() if parameter.requires_grad]
    optimizer, averaged = torch.optim.AdamW(parameters), {k: v.clone() for k, v in stage.model.state_dict().items()}
    seconds = 0.0
    for step in range(2):
        begun_s = time.perf_counter()
        with torch.autocast(torch.device(torch_device).type, dtype=torch.bfloat16, enabled=on_gpu):
            loss, _ = stage.loss(moved(stage.batch(step), torch_device), step)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        for key, value in stage.model.state_dict().items():
            averaged[key].lerp_(value, 0.01)
        float(loss.detach())  # waits for a GPU
        seconds = time.perf_counter() - begun_s
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    weights = sum(parameter.numel() for parameter in parameters)
    return f"{kind}, a training step on {images} images: {seconds:.4g} s, {peak / 1e9:.3g} GB at most, {weights:,} weights trained"


def _line(table: PassTable) -> str:
    return ", ".join(
        f"{seconds:.4g} s at {cached} cached"
        for cached, seconds in zip(table.kv_tokens, table.seconds[0][0], strict=True)
    )


if __name__ == "__main__":
    main()
