"""The program `ciar-sim`: every command, each imported from its own file."""

import click

from ciar_sim.cli.evaluate import evaluate
from ciar_sim.cli.run import run, sweep
from ciar_sim.cli.show import list_, report, schema
from ciar_sim.cli.traces import traces
from ciar_sim.cli.train import profile, train

EPILOG = "Start with: ciar-sim run quickstart"


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="ciar-sim")
def main() -> None:
    """Latency and quality of edge-cloud image generation.

    Real forward passes of a cloud model and its device companion, replayed over a simulated device, network and cloud.
    """


for command in (run, sweep, report, train, profile, evaluate, schema, list_, traces):
    main.add_command(command)
