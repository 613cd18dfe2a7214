"""`python -m tests.fuzz [--count N] [--seed S] [--only KIND:NUMBER]`: exit code 1 if an input fails."""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.fuzz.run import failures, world


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="inputs, of all kinds together (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="KIND[:NUMBER]", help="one kind, or one input of it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tried: Counter[str] = Counter()
        failed = 0
        for kind, number, wrong in failures(world(Path(folder)), given.count, given.seed, given.only):
            tried[kind] += 1
            if wrong is not None:
                failed += 1
                print(f"--- {kind}:{number} (seed {given.seed})\n{wrong}", flush=True)
            if sum(tried.values()) % 1000 == 0:
                print(f"{sum(tried.values())} inputs, {failed} failures", file=sys.stderr, flush=True)
    print(f"{sum(tried.values())} inputs ({', '.join(f'{kind} {n}' for kind, n in tried.items())}): {failed} failures")
    return 1 if failed else 0


sys.exit(main())
