"""Points of random sweeps."""

from collections.abc import Iterator

from simulator.core.rng import stream


def sobol(dimensions: int, count: int, seed: int) -> Iterator[list[float]]:
    """The first points of a scrambled Sobol sequence in [0, 1): they fill the space more evenly than independent draws.

    Source: Owen 1998, "Scrambling Sobol' and Niederreiter-Xing points", by scipy.

    Args:
        dimensions: Of the space.
        count: Of points.
        seed: Of the scrambling.
    """
    from scipy.stats import qmc  # half a second, for random sweeps alone

    engine = qmc.Sobol(dimensions, scramble=True, rng=int(stream(seed, "sweep.random").integers(2**63)))
    power = max(count - 1, 0).bit_length()  # whole powers of two keep the balance of the sequence
    yield from engine.random_base2(power)[:count].tolist()
