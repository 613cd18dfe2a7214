"""What a cell does to a device in `network:`: handovers, the scheduling of its uplink, the timers of its operator."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from simulator.core.part import Part, items
from simulator.core.settings import refuse
from simulator.experiment.schema.queue import Queue
from simulator.pricing import catalogue

# The least values are far below a symbol of any radio (18 us in NR at 60 kHz) and above the resolution of the clock in a long run.
GapMs = Annotated[float, Field(ge=1e-3, le=60_000)]
PeriodMs = Annotated[float, Field(ge=1e-3, le=10_000)]


class Handover(Part):
    """Handovers, during which nothing passes: see `simulator.network.handover`.

    Attributes:
        speed_kmh: Speed of the device; frequency and length of handovers then follow from the radio in the catalogue.
        every_s: Mean time between handovers, instead of a speed.
        gap_ms: Mean length of a handover; null: that of the radio.
    """

    speed_kmh: float | None = Field(default=None, gt=0, le=1000)
    every_s: float | None = Field(default=None, ge=1e-3, le=1e6)
    gap_ms: GapMs | None = None

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if self.speed_kmh is None and self.every_s is None:
            refuse("needs speed_kmh or every_s: how often handovers come")
        if self.speed_kmh is not None and self.every_s is not None:
            refuse("conflicts with speed_kmh: how often is given twice; give one of them", "every_s")
        return self


class Uplink(Part):
    """How a message gets its turn in the uplink: see `simulator.network.radio`.

    Attributes:
        sr_period_ms: Time between opportunities for a scheduling request; null: the radio's.
        grant_ms: Time from a request until its grant can be used; null: the radio's.
        slot_ms: Time between uplink slots in a TDD pattern; null for FDD.
        configured_ms: Time between the slots of a configured grant, instead of requests.
    """

    sr_period_ms: PeriodMs | None = None
    grant_ms: float | None = Field(default=None, ge=0, le=10_000)
    slot_ms: PeriodMs | None = None
    configured_ms: PeriodMs | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not any(value is not None for _, value in self):
            refuse("needs sr_period_ms, grant_ms, slot_ms or configured_ms")
        for key in ("sr_period_ms", "grant_ms"):
            if self.configured_ms is not None and getattr(self, key) is not None:
                refuse("conflicts with configured_ms: a configured grant needs no request", key)
        if self.slot_ms is not None:
            for key in ("sr_period_ms", "configured_ms"):
                period_ms = getattr(self, key)
                _whole_slots(
                    period_ms, self.slot_ms, f"must be a multiple of slot_ms, {self.slot_ms:g}", period_ms, key
                )
        return self


def _whole_slots(period_ms: float | None, slot_ms: float, rule: str, found_ms: float | None, *at: str) -> None:
    """Refuse a period that is not a whole number of slots."""
    slots = 1.0 if period_ms is None else period_ms / slot_ms
    if abs(slots - round(slots)) > 1e-9 or round(slots) == 0:
        refuse(f"{rule}, got {found_ms:g}", *at)


class OperatorTimers(Part, catalogue.RadioTimers):
    """Timers that one operator chooses; null: those of the radio.

    Attributes:
        share: Share of the devices; given for all operators or for none.
        inactivity_s: Silence after which the radio is idle.
        drx_after_ms: Silence after which it sleeps in cycles.
        drx_cycle_ms: Length of these cycles.
    """

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not any(value is not None for key, value in self if key != "share"):
            refuse("needs inactivity_s, drx_after_ms or drx_cycle_ms")
        return self


Operators = Annotated[
    Annotated[Literal["catalogue"], Tag("<name>")]
    | Annotated[tuple[OperatorTimers, ...], BeforeValidator(items), Field(min_length=1), Tag("<list>")],
    Discriminator(lambda data: "<list>" if isinstance(data, list | tuple) else "<name>"),
]


class Mobile(Queue):
    """The cell of a device.

    Attributes:
        handover: Its handovers; null for none.
        uplink: Scheduling of its uplink; null: contained in the measured round trip.
        operators: Timers of operators, from which each device draws one: those of the catalogue, or a list; null: the radio's own.
        sharing: How `devices_per_cell` devices share a cell: fcfs (first come, first served) or proportional-fair (in parallel).
        fading_snr_db: Mean signal-to-noise ratio of fading channels, which gives the gain of serving each device at its best moment;
            null: no fading.
    """

    handover: Handover | None = None
    uplink: Uplink | None = None
    operators: Operators | None = None
    sharing: Literal["fcfs", "proportional-fair"] = "fcfs"
    fading_snr_db: float | None = Field(default=None, ge=-20, le=60)

    def radio_row(self) -> catalogue.RadioPreset | None:
        """Return the radio of the catalogue, or None."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _cell_acts(self) -> Self:
        row = self.radio_row()
        if self.handover is not None:
            self._check_handover(row)
        if self.uplink is not None:
            self._check_uplink(row)
        if self.operators is not None:
            self._check_operators(row)
        fair = self.sharing != "fcfs"
        if fair and getattr(self, "devices_per_cell", 1) == 1:
            refuse("does nothing with devices_per_cell: 1", "sharing")
        if self.fading_snr_db is not None and not fair:
            refuse("does nothing without sharing: proportional-fair", "fading_snr_db")
        for key in ("buffer_bytes", "buffer_ms", "aqm", "wifi"):
            if fair and getattr(self, key) not in (None, "none"):
                refuse("does not go with sharing: proportional-fair, which has a queue for each device", key)
        if fair and self.cross_traffic is not None:
            for way in ("up", "down"):
                if getattr(self.cross_traffic, way) == "video":
                    allowed = "must be greedy or {busy_s, quiet_s} with sharing: proportional-fair, got video"
                    refuse(allowed, "cross_traffic", way)
        for key in ("congestion_control", "idle_timeout_s"):
            if fair and getattr(self, key, None) is not None:
                refuse(
                    "does not go with sharing: proportional-fair, where the arrival of a message is not known when it is sent",
                    key,
                )
        return self

    def _check_handover(self, row: catalogue.RadioPreset | None) -> None:
        given = self.handover
        assert given is not None
        moves = row is not None and row.handover_km is not None
        if given.speed_kmh is not None and not moves:
            refuse(
                "needs a radio whose handovers are known (lte, 5g-sub6, 5g-mmwave), or every_s and gap_ms",
                "handover",
                "speed_kmh",
            )
        if given.gap_ms is None and not moves:
            refuse("is missing: the radio has no length of handovers", "handover", "gap_ms")
        if getattr(self, "devices_per_cell", 1) > 1:
            refuse("goes with devices_per_cell: 1, since a device that moves leaves its cell", "handover")
        if self.wifi is not None:
            refuse("does not go with wifi: stations of one access point are not handed over", "handover")
        every_s, gap_s = self._handovers(row)
        if 1.5 * gap_s > every_s:
            refuse(
                f"must be at most two thirds of the {every_s:g} s between handovers, got {1e3 * gap_s:g} ms",
                "handover",
                "gap_ms",
            )

    def _handovers(self, row: catalogue.RadioPreset | None) -> tuple[float, float]:
        """Return the mean time between handovers and their mean length, in seconds."""
        given = self.handover
        assert given is not None
        gap_ms, every_s = given.gap_ms, given.every_s
        if gap_ms is None:
            assert row is not None
            gap_ms = row.handover_gap_ms
        if every_s is None:
            assert row is not None
            assert row.handover_km is not None
            assert given.speed_kmh is not None
            every_s = 3600.0 * row.handover_km / given.speed_kmh
        return every_s, gap_ms * 1e-3

    def _check_uplink(self, row: catalogue.RadioPreset | None) -> None:
        given = self.uplink
        assert given is not None
        if self.wifi is not None:
            refuse("does not go with wifi, whose stations take their turns themselves", "uplink")
        usual = None if row is None else row.sr_period_ms
        if row is not None and usual is None:
            refuse("needs a radio with a scheduled uplink (lte, 5g-sub6, 5g-mmwave), or none", "uplink")
        if given.configured_ms is None and usual is None:
            if given.grant_ms is not None and given.sr_period_ms is None:
                refuse("needs sr_period_ms without a radio of the catalogue, which is missing", "uplink", "grant_ms")
            if given.sr_period_ms is not None and given.grant_ms is None:
                refuse("is missing: there is no radio of the catalogue to take it from", "uplink", "grant_ms")
        if given.slot_ms is not None and given.configured_ms is None and given.sr_period_ms is None:
            rule = f"must divide the radio's sr_period_ms, {usual or 0.0:g}"
            _whole_slots(usual, given.slot_ms, rule, given.slot_ms, "uplink", "slot_ms")

    def _check_operators(self, row: catalogue.RadioPreset | None) -> None:
        given = self.operators
        if row is None:
            refuse("needs a radio, which is missing: timers are its own", "operators")
        if isinstance(given, str):
            if not row.operators:
                refuse("has no timers of operators for this radio; give a list of them", "operators")
            return
        assert given is not None
        shares = [one.share for one in given if one.share is not None]
        if shares and len(shares) < len(given):
            refuse("must have a share each, or none of them", "operators")
        if shares and abs(sum(shares) - 1.0) > 1e-9:
            refuse(f"must have shares that add up to 1, got {sum(shares):g}", "operators")

    def cell(self) -> dict[str, Any]:
        """Return the fields of `LinkFigures`."""
        row = self.radio_row()
        return {
            "handover": None if self.handover is None else self._handovers(row),
            "uplink": None if self.uplink is None else self._access(self.uplink, row),
            "operators": self._timers(row),
            "fair": self.sharing != "fcfs",
            "fading_snr_db": self.fading_snr_db,
        }

    @staticmethod
    def _access(given: Uplink, row: catalogue.RadioPreset | None) -> tuple[float, float, float, float]:
        sr_ms, grant_ms = given.sr_period_ms, given.grant_ms
        if given.configured_ms is not None:
            sr_ms = grant_ms = 0.0
        elif row is not None:
            sr_ms = row.sr_period_ms if sr_ms is None else sr_ms
            grant_ms = row.sr_grant_ms if grant_ms is None else grant_ms
        return tuple(1e-3 * (ms or 0.0) for ms in (sr_ms, grant_ms, given.slot_ms, given.configured_ms))  # type: ignore[return-value]

    def _timers(
        self, row: catalogue.RadioPreset | None
    ) -> tuple[tuple[float, float | None, float | None, float | None], ...]:
        """Return the share of each operator, and its inactivity timer, DRX timer and DRX cycle in seconds; None: the radio's."""
        if self.operators is None or row is None:
            return ()
        given: Sequence[catalogue.RadioTimers] = row.operators if isinstance(self.operators, str) else self.operators

        def seconds(ms: float | None) -> float | None:
            return None if ms is None else ms * 1e-3

        return tuple(
            (
                1.0 / len(given) if one.share is None else one.share,
                one.inactivity_s,
                seconds(one.drx_after_ms),
                seconds(one.drx_cycle_ms),
            )
            for one in given
        )
