"""One direction of a device's link: a wire that serialises one message after another, and the delay behind it."""

import math

import numpy as np

_BLOCK = 64  # jitter draws taken from the stream at once; the draws themselves do not depend on it


class Link:
    """A wire with a rate and a one-way delay, and one in-order stream of messages over it.

    Serialising a message occupies the wire, first come first served; propagation does not, so messages sent together
    arrive one serialisation apart: at 8 Mbit/s and 50 ms, four of 1000 bytes arrive after 51, 52, 53 and 54 ms. The
    one-way delay of each message is `delay_s` plus a normal draw of standard deviation `jitter_s`, never below 0.
    Messages do not overtake each other: one that would arrive before its predecessor arrives with it.
    """

    __slots__ = ("_free_s", "_last_s", "_normals", "_stream", "delay_s", "jitter_s", "rate_bps")

    def __init__(
        self, rate_bps: float, delay_s: float, jitter_s: float = 0.0, stream: np.random.Generator | None = None
    ) -> None:
        """rate_bps: bits per second, infinite for a wire that costs nothing. delay_s: one way. stream: of the jitter.

        Raises ValueError for a rate not above 0, a delay or jitter below 0, or jitter without a stream.
        """
        if not rate_bps > 0.0:
            raise ValueError(f"rate_bps must be > 0, got {rate_bps}")
        if not (0.0 <= delay_s < math.inf and 0.0 <= jitter_s < math.inf):
            raise ValueError(f"delay_s and jitter_s must be finite and >= 0, got {delay_s} and {jitter_s}")
        if jitter_s > 0.0 and stream is None:
            raise ValueError("jitter needs a stream to draw from")
        self.rate_bps = rate_bps
        self.delay_s = delay_s
        self.jitter_s = jitter_s
        self._stream = stream
        self._normals: list[float] = []
        self._free_s = 0.0  # when the wire has put its last bit out
        self._last_s = 0.0  # when the last message arrives

    def send(self, now_s: float, size_bytes: int) -> float:
        """When a message handed over at `now_s` arrives. Calls come in order of time; equal times queue as called."""
        free_s = self._free_s
        if free_s < now_s:
            free_s = now_s
        self._free_s = free_s = free_s + 8.0 * size_bytes / self.rate_bps
        delay_s = self.delay_s
        if self.jitter_s > 0.0:
            delay_s += self.jitter_s * self._normal()
            if delay_s < 0.0:
                delay_s = 0.0
        arrival_s = free_s + delay_s
        if arrival_s < self._last_s:
            return self._last_s
        self._last_s = arrival_s
        return arrival_s

    def _normal(self) -> float:
        normals = self._normals
        if not normals:
            assert self._stream is not None
            normals.extend(self._stream.standard_normal(_BLOCK)[::-1].tolist())
        return normals.pop()
