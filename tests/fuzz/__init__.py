"""A fuzzer of everything that reads a user's input: damaged inputs end in a result or in one clear error.

    python -m tests.fuzz --count 10000 --seed 0
    python -m tests.fuzz --only trace:1234      # one input again, with its traceback

An input is named by its kind and number; seed, kind and number decide its content. What is checked is in `verdict.py`, what is damaged
and how it is read in `targets.py`, how it is damaged in `mutate.py`.
"""
