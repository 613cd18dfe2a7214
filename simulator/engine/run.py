"""Replays sessions in virtual time: devices, their links, and the cloud, driven by SimPy callbacks.

A device and the wire of its uplink serve sessions first come, first served, so the state of each is one number: the time at which it is
free. While a device has one open session, nothing else uses it before its next request (`Device.safe_until_s`). Until then its
computing and sending are computed at once, without separate events. A call then costs two events: its arrival in the cloud, and the end
of an iteration, which the batch shares. On a contended device it costs four.

No device runs ahead of the clock if devices share a wire, or if a crash or a refusal may reach it; a device with a radio does so only
while none of its calls is open in the cloud. Wire and radio thus see messages in order of time. Impairments add no event, but a fair
cell (`simulator.network.fair`) adds one for each message; its sessions are of a class of their own.

Ties: events of equal time run in order of creation. Running ahead creates arrivals early, so of two messages that land at the
same time the same one always comes first, but not necessarily the one sent first.
"""

import math
from array import array
from collections.abc import Iterator
from typing import cast

import numpy as np

from simulator.cloud.cloud import SAMPLED, Cloud
from simulator.engine.case import CaseInputs, CaseResult
from simulator.engine.cell import CellSession
from simulator.engine.clock import Alarm, Clock
from simulator.engine.device import Device
from simulator.engine.fallback import without_cloud
from simulator.engine.impatience import DeadlineSession
from simulator.engine.measures import MEASURED, measured_of
from simulator.engine.recovery import RecoveringSession
from simulator.engine.session import Session
from simulator.engine.workload import ClosedLoop, Requests
from simulator.network.access import AccessNetwork
from simulator.pricing.program import SessionProgram
from simulator.results.timeline import Span


def simulate(inputs: CaseInputs) -> CaseResult:
    """Replay all requests of a case until the system is empty, or until `until_s`.

    Raises:
        ValueError: inputs contradict each other.
        DeadlockError: a message meets a link that never carries anything again.
    """
    return Run(inputs).run()


NO_REQUESTS = Requests(np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))


def _check(inputs: CaseInputs) -> None:
    """Raise ValueError if requests, fleet and clouds contradict each other."""
    parts, tiers, arrivals = inputs.parts, inputs.tiers, inputs.arrivals
    if inputs.devices < 1:
        raise ValueError(f"devices must be >= 1, got {inputs.devices}")
    prompts = len(parts[0].programs)
    known = all(len(part.programs) == prompts for part in parts)
    if isinstance(arrivals, ClosedLoop):
        known = known and arrivals.prompts <= prompts
    elif len(arrivals):
        if not 0 <= arrivals.device.min() <= arrivals.device.max() < inputs.devices:
            raise ValueError(f"requests come from devices outside the fleet of {inputs.devices}")
        if not (arrivals.requested_s[0] >= 0.0 and np.all(np.diff(arrivals.requested_s) >= 0.0)):
            raise ValueError("requests must be in order of time, from 0 on")
        known = known and 0 <= arrivals.prompt.min() <= arrivals.prompt.max() < prompts
    if not known:
        raise ValueError(f"requests ask for prompts outside the {prompts} programs")
    for part in parts:
        kv_tokens = tiers[part.tier].rules.kv_tokens
        if kv_tokens < max((program.kv_tokens for program in part.programs), default=0):
            raise ValueError(f"the KV memory of a replica holds {kv_tokens:.0f} positions, less than one session needs")


class Run:
    """One case: opens sessions as their requests arrive, and stores what they measured (see `SessionHost`)."""

    def __init__(self, inputs: CaseInputs) -> None:
        _check(inputs)
        closed: ClosedLoop | None = None
        if isinstance(inputs.arrivals, ClosedLoop):
            closed, arrivals = inputs.arrivals, NO_REQUESTS  # requests are added during the run
        else:
            arrivals = inputs.arrivals
        n = len(arrivals)
        self.inputs = inputs
        self.parts, self.tiers = inputs.parts, inputs.tiers
        self.fallback = inputs.fallback
        self.missing: set[tuple[int, int]] = set()
        # By request, for those that have any: the call given up, retries, payload (up, down) beyond that of the program.
        self.timed_out_call: dict[int, int] = {}
        self.retries: dict[int, int] = {}
        self.more_bytes: dict[int, tuple[int, int]] = {}
        self.draining = 0
        self.closed = closed
        self.clock = Clock()
        start_s = float(arrivals.requested_s[0]) if n else 0.0
        self.counted_from_s = max(start_s, inputs.warmup_s)
        self.before_s = 0.0, 0.0  # seconds that replicas were up and busy before counted_from_s
        self.clouds: list[Cloud] = []
        number = 0
        for tier in self.tiers:
            self.clouds.append(Cloud(tier, self.clock.at, start_s, number))
            scaled = tier.rules.autoscale
            number += tier.replicas if scaled is None else scaled.max_replicas
        self.open = n  # number of requests that are open or still to come
        self.devices: dict[int, Device] = {}
        self.part_ends = np.cumsum([part.devices for part in self.parts])
        self.asking: dict[int, Iterator[tuple[float, int]]] = {}  # think times and prompts, by device of a closed loop
        self.spans: list[Span] = []
        self.samples: list[tuple[float, ...]] = []
        self.measured = {name: array("d", bytes(8 * n)) for name in MEASURED}
        self.radio_j, self.radio_static_j = array("d", bytes(8 * n)), array("d", bytes(8 * n))
        first = [0, *self.part_ends[:-1].tolist()]
        self.accesses = [
            AccessNetwork(part.network, inputs.seed, self.radio_j, self.radio_static_j, at, at=self.clock.at)
            for part, at in zip(self.parts, first, strict=True)
        ]
        self.measured["done_s"] = array("d", np.full(n, np.nan).tobytes())
        # Arrays, not lists: a million requests as Python objects would take more memory than all results.
        self.requested_s = array("d", np.asarray(arrivals.requested_s, np.float64).tobytes())
        self.next_request_s = array("d", arrivals.next_of_device().tobytes())
        self.device_of = array("q", np.asarray(arrivals.device, np.int64).tobytes())
        self.prompt_of = array("q", np.asarray(arrivals.prompt, np.int64).tobytes())
        self.on_request = (self._on_request,)
        self.on_ask = (self._on_ask,)

    def run(self) -> CaseResult:
        if self.closed is not None:
            for number in range(self.inputs.devices):
                self.asking[number] = self.closed.of_device(number)
                self.ask(number, 0.0)
        elif self.open:
            self.clock.at(self.requested_s[0], self.on_request, 0)
        any_requests = self.open > 0
        if any_requests:
            if self.inputs.until_s < math.inf:
                self.clock.at(self.inputs.until_s, (self._on_end,), None)
            if self.inputs.sample_every_s < math.inf:
                self.clock.at(0.0, (self._on_sample,), None)
            if self.inputs.warmup_s > 0.0:
                self.clock.at(self.counted_from_s, (self._on_warm,), None)
            self.clock.run()
        for access in self.accesses:
            for radio in access.radios:
                radio.finish()
        return CaseResult(
            columns=self._columns(),
            spans=self.spans,
            events=self.clock.events(),
            cloud_busy_s=self._busy_s(self.clock.now),
            makespan_s=self.clock.now if any_requests else math.nan,
            mean_batch=self._mean_batch(),
            cloud_up_s=self._up_s(self.clock.now),
            utilisation=self._utilisation() if any_requests else math.nan,
            refused=sum(cloud.refused for cloud in self.clouds),
            unfinished=self.open - self.draining,
            samples=dict(zip(SAMPLED, np.array(self.samples).reshape(-1, len(SAMPLED)).T, strict=True)),
            missing=tuple(sorted(self.missing)),
        )

    def _on_sample(self, alarm: Alarm) -> None:
        together = zip(*(cloud.sample(alarm.time_s) for cloud in self.clouds), strict=True)
        next(together)  # the time
        self.samples.append((alarm.time_s, *map(sum, together)))
        self.clock.at(len(self.samples) * self.inputs.sample_every_s, (self._on_sample,), None)

    def _on_warm(self, alarm: Alarm) -> None:
        self.before_s = sum(self._up_s(alarm.time_s)), sum(self._busy_s(alarm.time_s))

    def _up_s(self, now_s: float) -> list[float]:
        return [seconds for cloud in self.clouds for seconds in cloud.up_s(now_s)]

    def _busy_s(self, now_s: float) -> list[float]:
        return [seconds for cloud in self.clouds for seconds in cloud.busy_s(now_s)]

    def _mean_batch(self) -> float:
        replicas = [replica for cloud in self.clouds for replica in cloud.replicas]
        iterations = sum(replica.iterations for replica in replicas)
        return sum(replica.items_done for replica in replicas) / iterations if iterations else math.nan

    def _utilisation(self) -> float:
        """Return `CaseResult.utilisation`. The initial replicas count as up before the first request, and those up at the last event count
        as up after it."""
        now_s, inputs = self.clock.now, self.inputs
        if now_s < inputs.warmup_s:
            return 0.0 if inputs.duration_s > inputs.warmup_s else math.nan
        up_s = sum(self._up_s(now_s)) - self.before_s[0]
        up_s += sum(tier.replicas for tier in self.tiers) * (self.counted_from_s - inputs.warmup_s)
        still_up = sum(replica.up for cloud in self.clouds for replica in cloud.replicas)
        up_s += still_up * max(0.0, inputs.duration_s - now_s)
        return (sum(self._busy_s(now_s)) - self.before_s[1]) / up_s if up_s > 0.0 else math.nan

    def _on_end(self, _alarm: Alarm) -> None:
        self.clock.drop()

    def _on_request(self, alarm: Alarm) -> None:
        request: int = alarm.subject
        if request + 1 < len(self.requested_s):
            self.clock.at(self.requested_s[request + 1], self.on_request, request + 1)
        device = self.device(self.device_of[request])
        device.next_request_s = self.next_request_s[request]
        self.begin(request, device, alarm.time_s)

    def begin(self, request: int, device: Device, now_s: float) -> None:
        part = device.part
        program = part.programs[self.prompt_of[request]]
        if part.network.fair:
            session: Session = CellSession(self, request, device, program)
        elif self.fallback is None or not program.optional:
            session = Session(self, request, device, program)
        else:
            session = DeadlineSession(self, request, device, program)
            session.prepare(program.optional)
        session.traced = request < self.inputs.timeline_sessions
        session.priority = part.priority
        session.deadline_s = now_s + part.slo_s
        device.count(+1)
        session.advance(now_s)

    def recover(self, session: Session) -> None:
        """The session's replica has crashed: change its class, as session.py explains."""
        in_flight = session.in_flight
        session.__class__ = RecoveringSession
        if in_flight is None:
            cast(RecoveringSession, session).prepare(frozenset())

    def device(self, number: int) -> Device:
        device = self.devices.get(number)
        if device is None:
            index = int(np.searchsorted(self.part_ends, number, side="right"))
            part = self.parts[index]
            cloud = self.clouds[part.tier]
            # A crash or a refusal reaches a device at the time of the clock, so its session must not be ahead of the clock.
            ahead = not cloud.rules.crashes and cloud.rules.max_waiting is None
            device = self.devices[number] = Device(number, part, self.accesses[index], cloud, ahead)
        return device

    # Closed loop.

    def ask(self, number: int, now_s: float) -> None:
        """Schedule the next request of a device after its think time, unless that is at or after `duration_s`."""
        assert self.closed is not None
        think_s, prompt = next(self.asking[number])
        if now_s + think_s < self.closed.duration_s:
            self.open += 1
            self.clock.at(now_s + think_s, self.on_ask, (number, prompt))

    def _on_ask(self, alarm: Alarm) -> None:
        number, prompt = alarm.subject
        request = len(self.requested_s)
        self.requested_s.append(alarm.time_s)
        self.device_of.append(number)
        self.prompt_of.append(prompt)
        self.radio_j.append(0.0)
        self.radio_static_j.append(0.0)
        for name, values in self.measured.items():
            values.append(math.nan if name == "done_s" else 0.0)
        self.begin(request, self.device(number), alarm.time_s)

    def close(self, session: Session) -> None:
        """Store the measurements of a session that is finished on all sides."""
        self.keep(session)
        self.forget()

    def keep(self, session: Session) -> None:
        request = session.request
        for column, value in zip(self.measured.values(), measured_of(session), strict=True):
            column[request] = value

    def timed_out_at(self, session: Session, call: int) -> SessionProgram:
        """Return the program of a session that stops waiting for a call; a stand-in, noted in `missing`, if it is not recorded."""
        part, prompt = session.device.part, self.prompt_of[session.request]
        self.timed_out_call[session.request] = call
        program = part.abandoned.get((prompt, call))
        if program is None:
            self.missing.add((prompt, call))
            program = without_cloud(part.programs[prompt], call)
        return program

    def count_bytes(self, request: int, up: int, down: int) -> None:
        known = self.more_bytes.get(request, (0, 0))
        self.more_bytes[request] = known[0] + up, known[1] + down

    def forget(self) -> None:
        """Count one open request less. After the last one, cancel the remaining events of the cloud (crashes, background jobs)."""
        self.open -= 1
        if not self.open:
            self.clock.drop()

    def _columns(self) -> dict[str, np.ndarray]:
        n = len(self.requested_s)
        m = {name: np.array(column, np.float64) for name, column in self.measured.items()}
        prompt, device = np.array(self.prompt_of, np.int64), np.array(self.device_of, np.int64)
        requested_s = np.array(self.requested_s, np.float64)
        answered = ~np.isnan(m["done_s"])
        part = np.searchsorted(self.part_ends, device, side="right")
        programs, program_of = self._programs(part, prompt)
        more_up, more_down, retries = (np.zeros(n, np.int64) for _ in range(3))
        timed_out_call = np.full(n, -1, np.int64)
        for request, call in self.timed_out_call.items():
            timed_out_call[request] = call
        for request, (up, down) in self.more_bytes.items():
            more_up[request], more_down[request] = up, down
        for request, count in self.retries.items():
            retries[request] = count

        def program_column(name: str, dtype: type = np.float64) -> np.ndarray:
            each: np.ndarray = np.array([getattr(program, name) for program in programs], dtype)
            of_request: np.ndarray = each[program_of]
            return of_request

        latency_s = m["done_s"] - requested_s
        device_other_s = program_column("encode_s") + program_column("image_decode_s")
        encode_s = m["encode_s"] + program_column("encode_s")
        image_decode_s = m["image_decode_s"] + program_column("image_decode_s")
        energy_j = program_column("device_s") * np.array([each.device.power_w for each in self.parts])[part]
        energy_j = energy_j + np.array(self.radio_j, np.float64)
        static_j = np.array(self.radio_static_j, np.float64)
        columns = {
            "request": np.arange(n, dtype=np.int64),
            "device": device,
            "prompt": prompt,
            "requested_s": requested_s,
            "done_s": m["done_s"],
            "latency_s": latency_s,
            "decode_s": latency_s - m["connect_s"] - encode_s - image_decode_s,
            "first_token_s": m["first_token_s"] - requested_s,
            "connect_s": m["connect_s"],
            "encode_s": encode_s,
            "device_queue_s": m["device_queue_s"],
            "device_compute_s": program_column("device_s") - device_other_s + m["throttled_s"],
            "uplink_s": m["uplink_s"],
            "cloud_queue_s": m["cloud_queue_s"],
            "cloud_compute_s": m["cloud_compute_s"],
            "downlink_s": m["downlink_s"],
            "wait_s": m["wait_s"],
            "image_decode_s": image_decode_s,
            "calls": np.array([len(program.calls) for program in programs], np.int64)[program_of],
            "device_passes": program_column("device_passes", np.int64),
            "cloud_passes": program_column("cloud_passes", np.int64),
            "cloud_call_pct": program_column("cloud_call_pct"),
            "bytes_up": program_column("bytes_up", np.int64) + more_up + m["resent_bytes"].astype(np.int64),
            "bytes_down": program_column("bytes_down", np.int64) + more_down,
            "device_energy_j": energy_j,
            "cloud_gpu_s": m["gpu_share_s"],
            "timed_out_call": timed_out_call,
            "retries": retries,
            "device_active_j": energy_j - static_j,
            "device_static_j": static_j,
        }
        return columns if answered.all() else {name: column[answered] for name, column in columns.items()}

    def _programs(self, part: np.ndarray, prompt: np.ndarray) -> tuple[list[SessionProgram], np.ndarray]:
        """Return all programs, and the index of each request's: that of its prompt, or one that gave up a reply.

        Args:
            part: int [N], part of the fleet of each request's device.
            prompt: int [N].
        """
        programs = [program for each in self.parts for program in each.programs]
        program_of = part * len(self.parts[0].programs) + prompt
        for request, call in self.timed_out_call.items():
            program = self.parts[int(part[request])].abandoned.get((int(prompt[request]), call))
            if program is not None:
                program_of[request] = len(programs)
                programs.append(program)
        return programs, program_of
