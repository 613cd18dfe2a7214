"""Messages of a simulated request over an exported mahimahi folder, with the TCP of the running Linux kernel.

    ciar-sim export SCENARIO --as mahimahi --out FOLDER
    ciar-sim export SCENARIO --as messages --request 0 --out MESSAGES.csv
    sudo python -m benchmarks.mahimahi FOLDER/NAME.sh MESSAGES.csv --method ciar --transport tcp

The script runs with commands `mm-delay`, `mm-loss` and `mm-link` of this program, which read their arguments as mahimahi's do. What they
are told is then emulated between two TUN devices by mahimahi's rules, which are written here again: a line of a delivery trace is an
opportunity for 1504 bytes at a millisecond, the trace starts again at its last time, an opportunity that finds the queue empty is lost, a
packet counts with the 4 bytes of a TUN header, and clocks tick in milliseconds. Two processes exchange the messages of one request: a side
sends a message as long after its latest event (a message sent or received) as in the simulation, so all that differs is the network.
"""

import json
import math
import os
import random
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path

import click
import numpy as np
import pandas as pd

from benchmarks.kernel_tcp import ADDRESSES, PORT, emulate, ends, refuse_elsewhere, urgent
from simulator.network.transport import TRANSPORTS, Transport

OPPORTUNITY_BYTES, HEADER_BYTES = 1504, 4
QUEUES = ("infinite", "droptail")
# A command of mahimahi that notes its arguments and runs the rest. mm-link reads options as getopt_long does, before and after its files.
COMMAND = f"""#!{sys.executable}
import getopt, json, os, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "mm-link":
    ways = ("uplink", "downlink")
    options, rest = getopt.gnu_getopt(arguments, "", [f"{{way}}-queue{{end}}=" for way in ways for end in ("", "-args")])
else:
    options, rest = [], arguments
count = 1 if name == "mm-delay" else 2
with open(os.environ["MAHIMAHI_NOTES"], "a") as file:
    file.write(json.dumps([name, rest[:count], dict(options)]) + "\\n")
os.execvp(rest[count], rest[count:])
"""


class Delay:
    """mm-delay: packets leave a whole number of milliseconds after the tick in which they arrive."""

    def __init__(self, delay_ms: int) -> None:
        self.delay_ms = delay_ms

    def leaves_ms(self, now_ms: float, size: int) -> float:
        return math.floor(now_ms) + self.delay_ms


class Drops:
    """mm-loss: each packet is lost with the same probability."""

    def __init__(self, share: float) -> None:
        self.share, self.random = share, random.Random(0)

    def leaves_ms(self, now_ms: float, size: int) -> float:
        return math.inf if self.random.random() < self.share else now_ms


class DeliveryLink:
    """One direction of mm-link. Packets leave in order, so their times are known when they arrive.

    Attributes:
        queue_bytes: Room of the drop-tail queue, headers included; the packet that is being sent has left it.
    """

    def __init__(self, times_ms: Sequence[int], queue_bytes: float = math.inf) -> None:
        if list(times_ms) != sorted(times_ms) or not times_ms or times_ms[-1] <= 0:
            raise ValueError("a trace of mm-link ascends and lasts for more than 0 ms")
        self.times_ms, self.queue_bytes = list(times_ms), queue_bytes
        self._next = self._base_ms = 0
        self._at_ms, self._left = -1, 0  # the opportunity in use, and what is left of it
        self._waiting: deque[tuple[float, int]] = deque()  # when each packet leaves the queue, and its bytes

    def _opportunity(self) -> None:
        self._at_ms, self._left = self._base_ms + self.times_ms[self._next], OPPORTUNITY_BYTES
        self._next += 1
        if self._next == len(self.times_ms):
            self._next, self._base_ms = 0, self._base_ms + self.times_ms[-1]

    def leaves_ms(self, now_ms: float, size: int) -> float:
        size += HEADER_BYTES
        if size > OPPORTUNITY_BYTES:
            raise ValueError(f"mm-link carries no packet of {size} bytes")
        while self._waiting and self._waiting[0][0] <= now_ms:
            self._waiting.popleft()
        if sum(waiting for _, waiting in self._waiting) + size > self.queue_bytes:
            return math.inf
        while self._at_ms <= math.floor(now_ms):  # without a packet an opportunity is lost
            self._opportunity()
        begins_ms, left = self._at_ms, size
        while left:
            if not self._left:
                self._opportunity()
                begins_ms = self._at_ms if left == size else begins_ms
            part = min(left, self._left)
            left, self._left = left - part, self._left - part
        self._waiting.append((begins_ms, size))
        return self._at_ms


Part = Delay | Drops | DeliveryLink


def ways_of(script: Path) -> tuple[list[Part], list[Part]]:
    """Run the exported script with `COMMAND` in place of mahimahi, and return what packets up and down pass, in order.

    Raises:
        ValueError: The script fails, or says what mahimahi does not take.
    """
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        for name in ("mm-delay", "mm-loss", "mm-link"):
            (Path(folder) / name).write_text(COMMAND, encoding="utf-8")
            (Path(folder) / name).chmod(0o755)
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "MAHIMAHI_NOTES": str(notes)}
        subprocess.run(["sh", str(script), "true"], check=True, env=environment)
        noted = [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()]
    up: list[Part] = []
    down: list[Part] = []
    for name, (first, *others), options in noted:  # from the outermost to the innermost; packets up come from there
        if name == "mm-delay":
            parts: tuple[Part | None, Part | None] = (Delay(int(first)), Delay(int(first)))
        elif name == "mm-loss":
            if first not in ("uplink", "downlink") or not 0.0 <= float(others[0]) <= 1.0:
                raise ValueError(f"mm-loss takes uplink or downlink and a share, not {first} {others[0]}")
            drops = Drops(float(others[0]))
            parts = (drops, None) if first == "uplink" else (None, drops)
        else:
            parts = (_link(first, "uplink", options), _link(others[0], "downlink", options))
        up[:0] = [part for part in parts[:1] if part is not None]
        down += [part for part in parts[1:] if part is not None]
    return up, down


def _link(trace: str, way: str, options: dict[str, str]) -> DeliveryLink:
    queue, arguments = options.get(f"--{way}-queue", "infinite"), options.get(f"--{way}-queue-args", "")
    room = math.inf
    if queue == "droptail":
        name, _, number = arguments.partition("=")
        if name != "bytes":
            raise ValueError(f"a drop-tail queue of bytes=N is exported, not {arguments}")
        room = int(number)
    elif queue not in QUEUES:
        raise ValueError(f"{queue} is not exported")
    return DeliveryLink([int(line) for line in Path(trace).read_text(encoding="utf-8").split()], room)


@dataclass
class Side:
    """One end of the exchange.

    Attributes:
        events: (seconds in the simulation, message, whether it is sent) of this end, in order.
        stream_bytes: Bytes of each message with the transport's framing, without headers of packets.
        times_s: [messages] when each is sent (this end's) or has arrived; gets the times of the real clock.
    """

    events: list[tuple[float, int, bool]]
    stream_bytes: list[int]
    sent_s: np.ndarray
    arrived_s: np.ndarray
    _inbound: deque[tuple[int, int]] = field(default_factory=deque)
    _got: int = 0

    def __post_init__(self) -> None:
        ends_at = 0
        for _, message, sends in self.events:
            if not sends:
                ends_at += self.stream_bytes[message]
                self._inbound.append((message, ends_at))

    def _read(self, one: socket.socket, until_s: float) -> None:
        """Note arrivals until a time or the next arrival."""
        wait_s = until_s - time.monotonic()
        if select.select([one], (), (), max(0.0, wait_s))[0]:
            data = one.recv(1 << 20)
            if not data:
                raise RuntimeError("the other end closed the connection")
            self._got += len(data)
            while self._inbound and self._inbound[0][1] <= self._got:
                self.arrived_s[self._inbound.popleft()[0]] = time.monotonic()

    def play(self, connect: Callable[[], socket.socket]) -> None:
        """Send and receive. connect: opens the connection; called when the first message is sent or awaited."""
        one: socket.socket | None = None
        before_s, here_s = self.events[0][0], time.monotonic()  # simulated and real time of the latest event
        for simulated_s, message, sends in self.events:
            if sends:
                due_s = here_s + simulated_s - before_s
                while one is not None and time.monotonic() < due_s - 2e-4:
                    self._read(one, due_s - 1e-4)
                while time.monotonic() < due_s:
                    pass
                here_s = self.sent_s[message] = time.monotonic()
                one = one or connect()
                one.sendall(bytes(self.stream_bytes[message]))
            else:
                one = one or connect()
                while not self.arrived_s[message]:
                    self._read(one, time.monotonic() + 1.0)
                here_s = float(self.arrived_s[message])
            before_s = simulated_s
        assert one is not None
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
        one.close()


def exchange(
    messages: pd.DataFrame, ways: tuple[list[Part], list[Part]], transport: Transport, control: str
) -> np.ndarray:
    """Return the seconds [messages, 2] at which each message is sent and has arrived, from the first one."""
    count = len(messages)
    memory = mmap(-1, 16 * count)
    sent_s, arrived_s = np.frombuffer(memory, np.float64).reshape(2, count)
    stream_bytes = []
    for payload in messages["bytes"]:
        wire_bytes, segments = transport.frame(int(payload))
        stream_bytes.append(wire_bytes - segments * transport.segment_overhead_bytes)
    rows = list(zip(messages["direction"], messages["sent_s"], messages["delivered_s"], strict=True))
    sides = []
    for own in ("up", "down"):
        events = [(sent if way == own else there, n, way == own) for n, (way, sent, there) in enumerate(rows)]
        sides.append(Side(sorted(events), stream_bytes, sent_s, arrived_s))
    ready, begin = os.pipe(), os.pipe()
    tls = transport.handshake_rtts > 1

    def opened(one: socket.socket) -> socket.socket:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, control.encode())
        return one

    def device() -> None:
        urgent(40)
        os.read(begin[0], 1)

        def connect() -> socket.socket:
            one = opened(socket.socket())
            one.connect((ADDRESSES[1], PORT))
            if tls:  # hello up, certificates down
                one.sendall(bytes(transport.hello_bytes))
                one.recv(transport.handshake_bytes, socket.MSG_WAITALL)
            return one

        sides[0].play(connect)

    def cloud() -> None:
        urgent(40)
        listener = socket.create_server((ADDRESSES[1], PORT))
        os.write(ready[1], b"r")

        def connect() -> socket.socket:
            one = opened(listener.accept()[0])
            if tls:
                one.recv(transport.hello_bytes, socket.MSG_WAITALL)
                one.sendall(bytes(transport.handshake_bytes))
            return one

        sides[1].play(connect)
        time.sleep(5.0)

    began_s = time.monotonic()

    def carry(side: int, packet: bytes, now_s: float) -> float:
        at_ms = 1e3 * (now_s - began_s)
        for part in ways[side]:
            at_ms = part.leaves_ms(at_ms, len(packet))
            if at_ms == math.inf:
                return math.inf
        return began_s + 1e-3 * at_ms

    with ends(device, cloud) as (devices, ended):
        os.read(ready[0], 1)
        os.write(begin[1], b"b")
        emulate(devices, carry, ended)
    for one in (*ready, *begin):
        os.close(one)
    found: np.ndarray = np.stack([sent_s, arrived_s], 1) - sent_s[0]
    return found


@click.command()
@click.argument("script", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("messages", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--method", help="Label of a method in MESSAGES.  [default: the first]")
@click.option("--transport", type=click.Choice(["tcp", "grpc"]), default="tcp", show_default=True)
@click.option("--control", default="cubic", show_default=True, help="Congestion control of the sockets.")
@click.option("--out", type=click.Path(path_type=Path), help="CSV file for the times of each message.")
def main(script: Path, messages: Path, method: str | None, transport: str, control: str, out: Path | None) -> None:
    refuse_elsewhere("mahimahi")
    table = pd.read_csv(messages)
    table = table[table["method"] == (method or table["method"].iloc[0])].reset_index(drop=True)
    if table.empty or table["request"].nunique() > 1:
        raise click.ClickException(
            f"{messages}: needs the messages of one request of {method}: export them with --request 0"
        )
    times_s = exchange(table, ways_of(script), TRANSPORTS[transport], control)
    table["took_s"] = table["delivered_s"] - table["sent_s"]
    table["real_s"] = times_s[:, 1] - times_s[:, 0]
    if out is not None:
        table.to_csv(out, index=False)
    click.echo(
        f"Linux {os.uname().release.split('-')[0]}, {control}: messages, mean ms in the simulation and over the emulator, difference"
    )
    for (way, kind), rows in table.groupby(["direction", "kind"], sort=False):
        simulated_s, real_s = rows["took_s"].mean(), rows["real_s"].mean()
        largest_ms = 1e3 * (rows["real_s"] - rows["took_s"]).abs().max()
        click.echo(
            f"{way:4} {kind:8} {len(rows):4}  {1e3 * simulated_s:8.2f} {1e3 * real_s:8.2f}  {simulated_s / real_s - 1.0:+.1%}"
            f"  (largest difference {largest_ms:.1f} ms)"
        )
    simulated_s, real_s = table["delivered_s"].max() - table["sent_s"].min(), times_s.max()
    click.echo(f"request {simulated_s:.4f} s, over the emulator {real_s:.4f} s: {simulated_s / real_s - 1.0:+.2%}")


if __name__ == "__main__":
    main()
