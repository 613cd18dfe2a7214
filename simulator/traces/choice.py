"""The network trace that a scenario names: its files, what the files do not state, and the part to use."""

from dataclasses import dataclass
from pathlib import Path

from simulator.core.errors import TraceError
from simulator.traces.excerpt import Window, excerpt
from simulator.traces.read import FORMATS, read_trace
from simulator.traces.trace import Direction, Trace
from simulator.traces.units import Way, told


@dataclass(frozen=True)
class TraceChoice:
    """Files of a network trace, and how to read them.

    Attributes:
        files: paths; several files form one trace.
        directions: direction of each file; empty if the files state it or the only file is the downlink.
        unit: units that the files do not state, in the syntax of `units.told`.
        window_s: the argument of `excerpt`.
        time_scale: the argument of `excerpt`.
    """

    files: tuple[str, ...]
    directions: tuple[Way, ...] = ()
    unit: str | None = None
    window_s: Window | None = None
    time_scale: float = 1.0

    def read(self) -> Trace:
        """Read the files. Raises TraceError."""
        if self.directions:
            trace = self._directions()
        else:
            trace = read_trace([Path(file) for file in self.files], told(unit=self.unit))
        try:
            return excerpt(trace, self.window_s, self.time_scale)
        except TraceError as error:
            raise TraceError(f"{self.files[0]}: {error}") from None

    def _directions(self) -> Trace:
        """Read each direction from its own file."""
        ways: dict[Way, Direction] = {"down": Direction(), "up": Direction()}
        formats, notes = [], []
        for way, file in zip(self.directions, self.files, strict=True):
            trace = read_trace([Path(file)], told(unit=self.unit))
            if "direction" in FORMATS[trace.format].asks:
                trace = read_trace([Path(file)], told(way, self.unit))
            ways[way] = getattr(trace, way)
            if ways[way].rate is None:
                raise TraceError(
                    f"{file}: has no {way}link rate ({trace.format}); needed: one, since the file is given for {way}"
                )
            formats.append(trace.format)
            notes += [f"{way}: {note}" for note in trace.notes]
        return Trace("+".join(dict.fromkeys(formats)), ways["down"], ways["up"], tuple(notes))
