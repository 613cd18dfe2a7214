"""The program `ciar-sim`, with all its commands."""

import gc
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from ciar_sim.arguments import unusable
from ciar_sim.cli.cache import cache
from ciar_sim.cli.common import Commands
from ciar_sim.cli.decide import capacity, compare, export, recommend, regime
from ciar_sim.cli.evaluate import evaluate
from ciar_sim.cli.plot import plot
from ciar_sim.cli.run import run, sweep
from ciar_sim.cli.show import list_, report, schema
from ciar_sim.cli.traces import traces
from ciar_sim.cli.train import profile, train

EPILOG = "Start with: ciar-sim run quickstart"


class Program(Commands):
    """The command group. It refuses arguments that no file name or value can contain, before any command gets them."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        # The default garbage-collection thresholds cost a seventh of the time of loading modules, and a twentieth of a run.
        gc.set_threshold(50_000, 20, 20)
        # A notebook hands its own backend on, which matplotlib refuses where the notebook's packages are not installed. No plot uses it.
        os.environ["MPLBACKEND"] = "agg"
        arguments = list(sys.argv[1:] if args is None else args)
        for number, argument in enumerate(arguments, start=1):
            problem = unusable(argument)
            if problem:
                click.echo(f"Error: argument {number}, {argument[:60]!a}: {problem}", err=True)
                sys.exit(2)
        return super().main(arguments, *rest, **extra)


@click.group(
    cls=Program, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(package_name="ciar-sim")
def main() -> None:
    """Simulate the latency and image quality of edge-cloud image generation.

    Forward passes of a cloud model and a device model are recorded, then replayed over a simulated device, network and cloud.
    """


for command in (
    run,
    sweep,
    report,
    plot,
    compare,
    recommend,
    regime,
    capacity,
    list_,
    schema,
    export,
    traces,
    cache,
    profile,
    evaluate,
    train,
):
    main.add_command(command)
