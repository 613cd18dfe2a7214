"""Mutations: small faults in the core rules, each of which must make some test fail.

    python -m tests.mutate                    # all of them; takes minutes
    python -m tests.mutate --only top-p       # those whose name contains this

`table.py` lists them. `make test` checks that each row still matches the code; the mutations themselves run nightly and by hand.
"""
