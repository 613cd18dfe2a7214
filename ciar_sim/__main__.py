"""`python -m ciar_sim` is `ciar-sim`."""

from ciar_sim.cli.main import main

main()
