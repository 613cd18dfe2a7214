"""Mutations: small faults put into the core rules, each of which some test must notice.

    python -m tests.mutate                    # every one; some minutes
    python -m tests.mutate --only top-p       # those whose name holds this

`table.py` lists them. `make test` checks that each row still fits the code; the mutations themselves run nightly and by hand.
"""
