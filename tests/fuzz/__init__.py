"""A fuzzer for everything that reads a user's input: a damaged input must end in a result or in one clear error.

    python -m tests.fuzz --count 10000 --seed 0
    python -m tests.fuzz --only trace:1234      # one input again, with warnings raised as errors

An input is named by its kind and number; seed, kind and number determine its content. `targets.py` has the inputs and how each is read,
`mutate.py` the ways to damage them, `verdict.py` what the outcome must be.
"""
