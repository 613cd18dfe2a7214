"""Export of the links of a scenario for emulators of real traffic: a netem script, and delivery traces of mahimahi.

An emulator has rate, delay, loss and a queue. Comments in the files name everything else in the scenario that they leave out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from simulator.core.errors import CiarSimError
from simulator.experiment.fleet import network_of
from simulator.experiment.scenario import Case
from simulator.experiment.schema.figures import LinkFigures
from simulator.network.access import Network
from simulator.network.impairments import Jitter
from simulator.network.trains import TrainCapacity
from simulator.network.wire import Capacity, StepFunction, VaryingWire, mean_of

PACKET_BYTES = 1500  # size of mahimahi's delivery opportunities, and of packets in netem's queue
UNBOUNDED_PACKETS = 1_000_000  # limit of an unbounded queue of netem, whose default of 1000 would drop packets
MOST_STEPS = 3600  # steps of a varying link in a script
FEW_EDGES = 100  # rate changes up to which each is a step; with more a step is the mean of a second
LEAST_PERIOD_MS, LEAST_PACKETS = 1000, 100  # least period and packets of the delivery trace of a constant rate
MOST_PACKETS = 2_000_000  # packets of a delivery trace
NETEM_DISTRIBUTIONS = ("normal", "pareto")  # distributions that netem has
LEAST_CUT_S = 1e-4  # of a mean delay; less is not told


@dataclass(frozen=True)
class LinkOf:
    """The link of one kind of device.

    Attributes:
        title: The kind, in words.
        network: The link in the form of the engine.
        figures: The link in the form of the scenario.
    """

    title: str
    network: Network
    figures: LinkFigures


def links_of(case: Case) -> list[LinkOf]:
    """Return the link of each kind of device of a case."""
    found = []
    for number, (link, tier) in enumerate(zip(case.scenario.links, case.scenario.tiers, strict=True), start=1):
        title = f"kind {number} of the fleet" if len(case.scenario.links) > 1 else "all devices"
        to_tier = f", to {tier}" if tier else ""
        found.append(LinkOf(title + to_tier, network_of(link, case.scenario.seed), link))
    return found


def netem(case: Case) -> str:
    """Return a shell script that emulates the links of a case on an interface: `sh FILE eth0`, or `sh FILE eth0 2` for the second kind.

    The uplink is the outgoing traffic of the interface. The downlink is its incoming traffic, redirected through an intermediate device
    (ifb).
    """
    links = links_of(case)
    lines = [
        "#!/bin/sh",
        f"# The link of scenario {case.scenario.name} on a network interface, by ciar-sim. Needs root: sh THIS eth0"
        + (" KIND" if len(links) > 1 else ""),
        *(f"# {text}" for text in _conditions(case)),
        "# netem loses and counts what the kernel hands over, up to 64 kB at once; for packets: ethtool -K eth0 tso off gso off gro off",
        "set -e",
        'dev="${1:?name the interface}"',
        "ifb=ifb0",
        "",
        "put() {  # up, down",
        '  tc qdisc replace dev "$dev" root netem $1',
        '  tc qdisc replace dev "$ifb" root netem $2',
        "}",
        "step() {  # seconds, up, down",
        '  put "$2" "$3"',
        '  sleep "$1"',
        "}",
        "",
    ]
    for number, one in enumerate(links, start=1):
        lines += [f"kind_{number}() {{  # {one.title}", *(f"  # left out: {text}" for text in _left_out(one, "netem"))]
        steps = list(_steps(one.network))
        if len(steps) == 1:
            _, up, down = steps[0]
            lines.append(f'  put "{up}" "{down}"')
        else:
            lines.append("  while :; do")
            lines += [f'    step {seconds:g} "{up}" "{down}"' for seconds, up, down in steps]
            lines.append("  done")
        lines += ["}", ""]
    lines += [
        "modprobe ifb numifbs=1 2>/dev/null || true",
        'ip link show "$ifb" >/dev/null 2>&1 || ip link add "$ifb" type ifb',
        'ip link set "$ifb" up',
        'tc qdisc del dev "$dev" ingress 2>/dev/null || true  # of an earlier run: a filter that is there cannot be replaced',
        'tc qdisc add dev "$dev" handle ffff: ingress',
        'tc filter add dev "$dev" parent ffff: protocol all prio 1 matchall action mirred egress redirect dev "$ifb"',
        '"kind_${2:-1}"',
        "",
        '# To undo it: tc qdisc del dev "$dev" root; tc qdisc del dev "$dev" ingress; ip link del "$ifb"',
    ]
    return "\n".join(lines) + "\n"


def mahimahi(case: Case) -> dict[str, bytes]:
    """Return files by name for each kind of device: the delivery traces `NAME.up` and `NAME.down`, and `NAME.sh`, which runs a command."""
    links = links_of(case)
    files: dict[str, bytes] = {}
    for number, one in enumerate(links, start=1):
        name = case.scenario.name + (f"-{number}" if len(links) > 1 else "")
        n = one.network
        for way, rate in (("up", n.up_bps), ("down", n.down_bps)):
            files[f"{name}.{way}"] = "".join(f"{time_ms}\n" for time_ms in deliveries_ms(rate, _traced_s(n))).encode()
        command = [f"exec mm-delay {round(_mean_delay_ms(n))}"]
        for way, loss in (("uplink", mean_of(n.up_loss)), ("downlink", mean_of(n.down_loss))):
            command += [f"mm-loss {way} {loss:.6g}"] if loss else []
        command.append(f'mm-link "$here/{name}.up" "$here/{name}.down"')
        for way, buffer_bytes in (("uplink", n.up_buffer_bytes), ("downlink", n.down_buffer_bytes)):
            if buffer_bytes < math.inf:
                room = max(PACKET_BYTES, round(buffer_bytes))
                command.append(f"--{way}-queue=droptail --{way}-queue-args=bytes={room}")
        lines = [
            "#!/bin/sh",
            f"# A command behind the link of scenario {case.scenario.name} ({one.title}), by ciar-sim: sh {name}.sh COMMAND",
            *(f"# {text}" for text in _conditions(case)),
            *(f"# left out: {text}" for text in _left_out(one, "mahimahi")),
            'here=$(dirname "$0")',
            f'{" ".join(command)} -- "$@"',
        ]
        files[f"{name}.sh"] = ("\n".join(lines) + "\n").encode()
    return files


def _mean_delay_ms(network: Network) -> float:
    """Return the mean delay of a packet over both directions."""
    return 500.0 * (network.rtt_s + sum(jitter.added_s for jitter in network.jitters))


def _traced_s(network: Network) -> float:
    """Return the time (s) up to which delivery traces cover a link, the same for both ways; infinity if they hold whole periods."""
    return min(_most_s(rate) for rate in (network.up_bps, network.down_bps))


def _most_s(rate: float | Capacity) -> float:
    """Return the time (s) at which a varying rate has carried `MOST_PACKETS`, or infinity if that is not within its period."""
    most_bits = 8.0 * PACKET_BYTES * MOST_PACKETS
    if not isinstance(rate, Capacity) or rate.total_bits <= most_bits:
        return math.inf
    return VaryingWire(rate).finish_s(0.0, most_bits)


def deliveries_ms(rate: float | Capacity, until_s: float = math.inf) -> list[int]:
    """Return the times in milliseconds at which packets of `PACKET_BYTES` may leave. The last one is the period, after which they repeat.

    For a varying rate they cover whole periods, or the time until `until_s` if that is within the first one, but at most the first
    `MOST_PACKETS` packets.

    Raises:
        CiarSimError: The link never carries anything.
    """
    bits = 8.0 * PACKET_BYTES
    if not isinstance(rate, Capacity):
        period_ms = LEAST_PERIOD_MS
        while period_ms > 1 and rate * period_ms * 1e-3 > MOST_PACKETS * bits:
            period_ms //= 10
        packets = max(LEAST_PACKETS, math.ceil(rate * period_ms * 1e-3 / bits))
        period_ms = max(period_ms, round(1e3 * packets * bits / rate)) if packets == LEAST_PACKETS else period_ms
        constant: list[int] = np.ceil(np.arange(1, packets + 1) * period_ms / packets).astype(int).tolist()
        return constant
    if not rate.total_bits:
        raise CiarSimError("a link that never carries anything has no delivery trace")
    until_s = min(until_s, _most_s(rate))
    if until_s < rate.duration_s:
        end_s, total_bits = until_s, VaryingWire(rate).bits(0.0, until_s)
    else:
        periods = math.ceil(bits / rate.total_bits)  # more than one if a period carries less than a packet
        end_s, total_bits = periods * rate.duration_s, periods * rate.total_bits
    count = max(1, math.floor(total_bits / bits * (1.0 + 1e-12)))  # rounding error of a long sum: 1e-13
    target = bits * np.arange(1, count + 1)
    before, rest = np.divmod(target * (1.0 - 1e-12), rate.total_bits)
    here = np.searchsorted(rate.bits, rest, side="left") - 1
    within_s = np.array(rate.edges_s)[here] + (rest - np.array(rate.bits)[here]) / np.array(rate.rates_bps)[here]
    times = np.maximum(1, np.ceil(1e3 * (before * rate.duration_s + within_s) - 1e-6)).astype(int)
    times[-1] = max(int(times[-1]), round(1e3 * end_s))
    found: list[int] = times.tolist()
    return found


def _conditions(case: Case) -> list[str]:
    """Return comments with the swept values of the case, without settings of methods."""
    return [f"condition: {path} = {value}" for path, value in case.swept.items() if not path.startswith("methods.")]


def _steps(network: Network) -> Iterator[tuple[float, str, str]]:
    """Yield the duration (s) and the netem arguments up and down of each step. A constant link has one step."""
    n = network
    ways = [
        (_steps_of(rate), _steps_of(delay), jitter, _steps_of(loss), room)
        for rate, delay, jitter, loss, room in (
            (n.up_bps, n.up_delay_s, n.jitters[0], n.up_loss, n.up_buffer_bytes),
            (n.down_bps, n.down_delay_s, n.jitters[1], n.down_loss, n.down_buffer_bytes),
        )
    ]
    for begin_s, end_s in pairwise(_edges_s(n)):
        up, down = (
            _arguments(
                _over(rate, begin_s, end_s),
                _over(delay, begin_s, end_s),
                jitter,
                _over(loss, begin_s, end_s),
                n.burst_packets,
                room,
            )
            for rate, delay, jitter, loss, room in ways
        )
        yield end_s - begin_s, up, down


def _edges_s(network: Network) -> list[float]:
    """Return the edges of the steps (s) over the longest period."""
    varying = network.varying
    if not varying:
        return [0.0, 1.0]
    period_s = max(one.duration_s for one in varying)
    rates = [one for one in varying if isinstance(one, Capacity)]
    alike = all(one.duration_s == period_s for one in rates)
    if len(rates) == len(varying) and alike and all(len(one.edges_s) <= FEW_EDGES for one in rates):
        return sorted({edge for one in rates for edge in one.edges_s})
    return [
        *(float(second) for second in range(min(MOST_STEPS, math.ceil(period_s)))),
        min(float(MOST_STEPS), period_s),
    ]


def _changes_within(network: Network) -> bool:
    """Return whether something changes between the steps."""
    steps = set(_edges_s(network))
    changes = {edge for one in network.varying for edge in (*one.edges_s, one.duration_s)}
    return any(change not in steps for change in changes if change < max(steps))


def _steps_of(value: float | Capacity | StepFunction) -> float | Capacity:
    """Return a delay (s) or share that varies as a `Capacity`, which can be averaged."""
    return Capacity(value.edges_s[:-1], value.values, value.duration_s) if isinstance(value, StepFunction) else value


def _over(value: float | Capacity, begin_s: float, end_s: float) -> float:
    """Return the mean of a rate (bit/s), a delay (s) or a share between two times."""
    return VaryingWire(value).bits(begin_s, end_s) / (end_s - begin_s) if isinstance(value, Capacity) else value


def _arguments(
    bps: float, delay_s: float, jitter: Jitter, loss: float, burst_packets: float | None, buffer_bytes: float
) -> str:
    """Return the arguments of `tc qdisc ... netem`."""
    mean_s = delay_s + jitter.added_s
    text = f"delay {1e3 * mean_s:.6g}ms"
    if jitter.deviation_s:
        shape = jitter.distribution if jitter.distribution in NETEM_DISTRIBUTIONS else "normal"
        text += f" {1e3 * jitter.deviation_s:.6g}ms distribution {shape}"
    if bps < 1.0:
        return f"{text} loss 100% limit {UNBOUNDED_PACKETS}"
    if loss and burst_packets is not None:
        leave = 1.0 / burst_packets
        text += f" loss gemodel {100 * loss * leave / (1 - loss):.6g}% {100 * leave:.6g}%"
    elif loss:
        text += f" loss {100 * loss:.6g}%"
    room = UNBOUNDED_PACKETS
    if buffer_bytes < math.inf:  # netem's queue also contains packets in flight
        room = max(1, math.ceil((buffer_bytes + 0.125 * bps * mean_s) / PACKET_BYTES))
    return f"{text} rate {bps:.0f}bit limit {room}"


def _left_out(one: LinkOf, emulator: str) -> list[str]:
    """Return the properties of a link that the emulator does not reproduce."""
    n, link = one.network, one.figures
    jitters = bool(n.up_jitter_s or n.down_jitter_s or n.jitter_samples_s)
    told: Sequence[tuple[bool, str]] = (
        (
            emulator == "netem" and jitters and (n.distribution not in NETEM_DISTRIBUTIONS or bool(n.jitter_samples_s)),
            "the shape of the jitter: netem draws a normal distribution of the same deviation",
        ),
        (
            emulator == "netem" and n.jitter_on_top,
            "that jitter only adds to the delay: netem's also takes away, with the same mean",
        ),
        (
            emulator == "netem" and _cut_s(n) > LEAST_CUT_S,
            f"delays below 0, which netem makes 0: they add up to {1e3 * _cut_s(n):.3g} ms to the mean delay of a way",
        ),
        (
            emulator == "netem" and jitters,
            "one delay for a message: netem draws one for each packet, and with a rate none overtakes, so of several the longest counts",
        ),
        (emulator == "mahimahi" and jitters, "jitter: every packet has the mean delay"),
        (
            emulator == "mahimahi" and any(isinstance(x, StepFunction) for x in (n.up_delay_s, n.down_delay_s)),
            "changes of the delay",
        ),
        (
            emulator == "mahimahi" and any(isinstance(x, StepFunction) for x in (n.up_loss, n.down_loss)),
            "changes of the loss",
        ),
        (emulator == "mahimahi" and n.burst_packets is not None, "bursts of losses: packets are lost one by one"),
        (
            emulator == "mahimahi" and mean_of(n.up_delay_s) != mean_of(n.down_delay_s),
            "unequal delays: both ways have their mean",
        ),
        (
            emulator == "mahimahi" and abs(_mean_delay_ms(n) - round(_mean_delay_ms(n))) > 0.01,
            f"fractions of a millisecond: the delay is {_mean_delay_ms(n):.4g} ms each way",
        ),
        (
            emulator == "netem" and _changes_within(n),
            "changes within a second: each has its means",
        ),
        (
            emulator == "netem" and bool(n.varying) and _edges_s(n)[-1] < max(one.duration_s for one in n.varying),
            f"what comes after {MOST_STEPS} s",
        ),
        (
            emulator == "mahimahi" and _traced_s(n) < math.inf,
            f"what comes after {_traced_s(n):.0f} s, when a way has carried {MOST_PACKETS} packets",
        ),
        (emulator == "netem" and bool(n.varying), "packets wait for the end of an outage: netem loses them"),
        (
            any(isinstance(x, TrainCapacity) for x in (n.up_bps, n.down_bps)),
            "packet trains of an idle queue: mm-cellular plays the same files",
        ),
        (
            n.up_cross is not None or n.down_cross is not None,
            f"cross_traffic: start a competing flow (aqm: {link.aqm})",
        ),
        (n.wifi is not None, "the Wi-Fi hop: contention for the channel, its tail"),
        (
            link.radio is not None,
            f"the radio {link.radio}: sleeping, paging, promotion"
            + ", with the timers of operators" * bool(link.operators),
        ),
        (n.fair, "sharing side by side: devices behind one link are served first come, first served"),
        (n.fading_snr_db is not None, "fading of the channels"),
        (
            n.idle_timeout_s < math.inf,
            f"that a connection ends after {n.idle_timeout_s:g} s of silence (idle_timeout_s)",
        ),
        (n.handovers is not None, "handovers"),
        (
            bool(n.also),
            f"{len(n.also)} further path{'s' * (len(n.also) > 1)}: a real Multipath TCP needs an interface for each",
        ),
        (link.uplink is not None, "waits for the uplink: scheduling requests, slots, configured grants"),
        (n.devices_per_cell > 1, f"the {n.devices_per_cell} devices of a cell: start as many behind it"),
        (n.block_s is not None, "blocks of the trace at random (resample_s): this is the trace itself, which repeats"),
        (bool(n.varying), "the separate starting place of each device: this starts at the beginning"),
        (n.transport.name != "ideal", f"the transport {_transport(link)}: the real one takes its place"),
    )
    return [text for holds, text in told if holds]


def _transport(link: LinkFigures) -> str:
    """Describe the transport and its settings."""
    settings = {
        "congestion_control": link.congestion,
        "flow_window_bytes": link.flow_bytes,
        "handshake": link.handshake if link.handshake != "full" else "",
    }
    given = ", ".join(f"{key} {value}" for key, value in settings.items() if value)
    return f"{link.transport} ({given})" if given else link.transport


def _cut_s(network: Network) -> float:
    """Return by how much the mean of a normal delay grows, in seconds, if negative delays become 0: the larger of both ways."""
    added_s = [0.0]
    for jitter, delay in zip(network.jitters, (network.up_delay_s, network.down_delay_s), strict=True):
        if sd_s := jitter.deviation_s:
            r = (mean_of(delay) + jitter.added_s) / sd_s
            added_s.append(
                sd_s * (math.exp(-0.5 * r * r) / math.sqrt(2.0 * math.pi) - 0.5 * r * math.erfc(r / math.sqrt(2.0)))
            )
    return max(added_s)
