"""`python -m tests.mutate [--only NAME]`: exit code 1 if a mutation is not caught."""

import argparse
import sys

from tests.mutate.run import outcomes
from tests.mutate.table import MUTATIONS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.add_argument("--only", metavar="NAME", default="", help="mutations whose name holds this")
    given = parser.parse_args()
    chosen = [one for one in MUTATIONS if given.only in one.name]
    if not chosen:
        parser.error(f"no mutation's name holds {given.only!r}; there are {', '.join(one.name for one in MUTATIONS)}")
    caught = 0
    for name, outcome in outcomes(chosen):
        caught += outcome == "caught"
        print(f"{name:42} {outcome}", flush=True)
    print(f"{caught} of {len(chosen)} caught")
    return 0 if caught == len(chosen) else 1


sys.exit(main())
