"""Points of random sweeps."""

from collections.abc import Iterator

from simulator.core.rng import stream


def sobol(dimensions: int, count: int, seed: int) -> Iterator[list[float]]:
    """Yield the first points of a scrambled Sobol sequence in [0, 1), which cover the space more evenly than independent draws.

    Source: Owen 1998, "Scrambling Sobol' and Niederreiter-Xing points", as implemented in scipy.

    Args:
        dimensions: Number of dimensions.
        count: Number of points.
        seed: Seed of the scrambling.
    """
    from scipy.stats import qmc  # imported here because it takes half a second

    engine = qmc.Sobol(dimensions, scramble=True, rng=int(stream(seed, "sweep.random").integers(2**63)))
    power = max(count - 1, 0).bit_length()  # powers of two keep the sequence balanced
    yield from engine.random_base2(power)[:count].tolist()
