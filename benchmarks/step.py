"""Time of one decoding step of a catalogue model and of its one-layer device form, at their true shape with random weights.

    python -m benchmarks.step llamagen-xl

Times a step of two rows (guidance) with an empty and a full cache, a small tree of drafts, the caption encoder and the image decoder. Each
is timed once, after a warm-up pass. `ciar-sim profile --model` times the whole table with which a scenario is priced. With one CPU thread
the time is CPU time.
"""

import click
import torch

from models.profile import Sizes, measure_model
from simulator.core.errors import CiarSimError
from simulator.pricing.profile import PassTable

STEP = Sizes(rows=(2,), new_tokens=(1,), verified=(4,))


@click.command()
@click.argument("model")
@click.option("--torch-device", default="cpu", show_default=True)
def main(model: str, torch_device: str) -> None:
    try:
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


def _line(table: PassTable) -> str:
    return ", ".join(
        f"{seconds:.4g} s at {cached} cached"
        for cached, seconds in zip(table.kv_tokens, table.seconds[0][0], strict=True)
    )


if __name__ == "__main__":
    main()
