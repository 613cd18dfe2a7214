"""Shared by all tests."""

import os

# The models under test are tiny: a second thread costs more in waiting than it gives in work, above all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
