"""Transfer times of single messages over the TCP of the running Linux kernel: reference points for `simulator.network.congestion`.

    sudo python -m benchmarks.kernel_tcp

Real sockets in two network namespaces send messages to each other over TUN devices, between which this program emulates a link: rate,
delay, a drop-tail buffer in bytes, and losses by the same patterns as `benchmarks.ns3_points` and `benchmarks.linux_tcp`, given per packet
with data in order of sending. Only the message's direction has a rate and losses, as in the model. For each point it prints the kernel's
mean, the difference of the model's mean over the same losses, and the share of transfers whose times agree within 2 % and 2 ms.
`--streams` sends streams of small messages instead, as the tokens of an image: the times are those until the last one has arrived.

Times are of the real clock: the emulator, sender and receiver run with real-time priority, and several transfers at a time, each over a
link of its own. Needs Linux, root and /dev/net/tun, and about 0.3 s of a core per megabyte.
"""

import contextlib
import ctypes
import fcntl
import heapq
import math
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import click
import numpy as np

from benchmarks.ns3_points import Given, losses
from simulator.network.link import ImpairedLink
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Wire

ADDRESSES = ("10.77.0.1", "10.77.0.2")  # of the sender and of the receiver
PORT, FIRST_PORT = 9, 10_000  # of the receiver; of the first transfer's sender, the next ones follow
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
SOCKET_BYTES = 8_000_000  # send buffer, larger than any message
GAP_S = 0.01  # between the starts of two transfers
SPIN_S = 0.00015  # before a packet is due the emulator stops sleeping
SETTINGS = {  # without memory of earlier connections, and the kernel's own default of the receive buffer
    "ipv4.tcp_no_metrics_save": "1",
    "ipv4.tcp_rmem": "4096 131072 6291456",
    "ipv6.conf.all.disable_ipv6": "1",
}
# Bytes, Mbit/s, round trip in ms, loss in percent, buffer in bytes. Rates and round trips at which a millisecond does not matter.
POINTS = (
    (1_000, 5.0, 40.0, 2.0, math.inf),
    (14_480, 10.0, 60.0, 1.0, math.inf),
    (30_000, 5.0, 100.0, 3.0, math.inf),
    (64_000, 20.0, 40.0, 0.5, math.inf),
    (100_000, 10.0, 60.0, 0.1, math.inf),
    (100_000, 10.0, 60.0, 5.0, math.inf),
    (150_000, 8.0, 90.0, 4.0, math.inf),
    (250_000, 2.0, 12.0, 5.0, math.inf),
    (256_000, 10.0, 60.0, 0.1, math.inf),
    (256_000, 10.0, 60.0, 1.0, math.inf),
    (256_000, 20.0, 100.0, 0.0, math.inf),
    (256_000, 20.0, 40.0, 5.0, math.inf),
    (256_000, 20.0, 150.0, 5.0, math.inf),
    (256_000, 10.0, 40.0, 0.0, 30_000.0),
    (256_000, 5.0, 40.0, 0.0, 10_000.0),
    (1_000_000, 20.0, 40.0, 0.0, 50_000.0),
    (1_000_000, 10.0, 40.0, 0.5, 30_000.0),
)
# Round trip in ms, pause between two messages in ms, loss in percent; 10 Mbit/s.
STREAMS = (
    (40.0, 35.0, 2.0),
    (40.0, 35.0, 5.0),
    (40.0, 35.0, 10.0),
    (40.0, 35.0, 20.0),
    (100.0, 35.0, 5.0),
    (100.0, 35.0, 10.0),
    (100.0, 10.0, 5.0),
    (600.0, 35.0, 0.0),
    (600.0, 35.0, 2.0),
)
TOKENS, TOKEN_BYTES = 200, 12
STREAM_SEEDS = 24


@dataclass(frozen=True)
class Line:
    """A link for one transfer. drops: whether each packet with data is lost, in order."""

    bps: float
    rtt_s: float
    buffer_bytes: float = math.inf
    drops: Sequence[bool] = ()


def namespace(name: str, address: str, peer: str) -> int:
    """Enter a new network namespace with a TUN device, and return the device's file descriptor."""
    if LIBC.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    for command in (
        "link set lo up",
        f"link set {name} mtu 1500 txqueuelen 10000 up",
        f"addr add {address} peer {peer} dev {name}",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    for setting, value in SETTINGS.items():
        with open(f"/proc/sys/net/{setting.replace('.', '/')}", "w") as file:
            file.write(value)
    return device


def urgent(priority: int) -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))


@contextlib.contextmanager
def ends(near: Callable[[], None], far: Callable[[], None]) -> Iterator[tuple[tuple[int, int], Callable[[], bool]]]:
    """Run two jobs in network namespaces of their own, each with a TUN device whose peer is the other's.

    Yields:
        The file descriptors of the devices, and a function that says whether `near` has ended. Both jobs end with the block at the latest.

    Raises:
        RuntimeError: The job `near` failed.
    """
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    devices: list[int] = []
    pids: list[int] = []
    status: list[int] = []

    def ended() -> bool:
        if not status:
            pid, code = os.waitpid(pids[0], os.WNOHANG)
            status.extend([code] if pid else [])
        return bool(status)

    try:
        for job, name, addresses in ((near, "near", ADDRESSES), (far, "far", ADDRESSES[::-1])):
            devices.append(namespace(name, *addresses))
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    job()
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            pids.append(pid)
        LIBC.setns(home, CLONE_NEWNET)
        yield (devices[0], devices[1]), ended
        if status != [0]:
            raise RuntimeError("the sender failed")
    finally:
        LIBC.setns(home, CLONE_NEWNET)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        for pid in pids[1:] if status else pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for one in (home, *devices):
            os.close(one)


def receive(sizes: Sequence[int], ends_s: np.ndarray, done: int, ready: int) -> None:
    """Note in `ends_s` when each message has arrived, and write its number to `done`."""
    urgent(40)
    listener = socket.create_server((ADDRESSES[1], PORT), backlog=1000)
    os.write(ready, b"r")
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    open_: dict[int, tuple[socket.socket, int, list[int]]] = {}
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                one, (_, port) = listener.accept()
                open_[one.fileno()] = (one, port - FIRST_PORT, [0])
                poll.register(one, select.EPOLLIN)
                continue
            one, transfer, got = open_[number]
            try:
                got[0] += len(one.recv(1 << 20))
            except ConnectionError:
                got[0] = 0
            if got[0] >= sizes[transfer]:
                ends_s[transfer] = time.monotonic()
            elif got[0]:
                continue
            poll.unregister(one)
            open_.pop(number)[0].close()
            os.write(done, struct.pack("i", transfer))


def send(
    controls: Sequence[str],
    sizes: Sequence[int],
    begins_s: np.ndarray,
    done: int,
    at_a_time: int,
    parts: int = 1,
    pause_s: float = 0.0,
) -> None:
    """Send the messages, each over a connection of its own, and note in `begins_s` when each is handed over.

    parts: number of equal parts in which each is handed over, `pause_s` apart.
    """
    urgent(40)
    payload = bytes(max(sizes))
    waiting: dict[int, tuple[socket.socket, int]] = {}
    running: dict[int, socket.socket] = {}
    poll = select.epoll()
    poll.register(done, select.EPOLLIN)
    due: list[tuple[float, int, int]] = []  # time, transfer, part
    following, next_s = 0, time.monotonic()
    while following < len(sizes) or waiting or running:
        now_s = time.monotonic()
        while due and due[0][0] <= now_s:
            due_s, transfer, part = heapq.heappop(due)
            length = sizes[transfer] // parts
            if running[transfer].send(memoryview(payload)[:length]) != length:
                raise RuntimeError("the socket does not take the message at once")
            if part + 1 < parts:
                heapq.heappush(due, (due_s + pause_s, transfer, part + 1))
        if following < len(sizes) and len(waiting) + len(running) < at_a_time and now_s >= next_s:
            one = socket.socket()
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, 32, SOCKET_BYTES)  # SO_SNDBUFFORCE
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, controls[following].encode())
            one.bind((ADDRESSES[0], FIRST_PORT + following))
            one.connect_ex((ADDRESSES[1], PORT))
            waiting[one.fileno()] = (one, following)
            poll.register(one, select.EPOLLOUT)
            following += 1
            next_s = now_s + GAP_S
        soon_s = [at_s for at_s in (next_s, due[0][0] if due else next_s) if at_s > now_s]
        for number, _ in poll.poll(max(0.001, min(soon_s, default=now_s) - now_s)):
            if number == done:
                data = os.read(done, 4096)
                for (transfer,) in struct.iter_unpack("i", data):
                    one = running.pop(transfer)
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    one.close()
                continue
            one, transfer = waiting.pop(number)
            poll.unregister(one)
            running[transfer] = one
            begins_s[transfer] = time.monotonic()
            heapq.heappush(due, (begins_s[transfer], transfer, 0))


def emulate(devices: tuple[int, int], carry: Callable[[int, bytes, float], float], until: Callable[[], bool]) -> None:
    """Carry packets between two TUN devices until `until()` and no packet is under way.

    Args:
        carry: (device of 0 and 1 that it comes from, packet, time) -> time of its arrival at the other, infinity if it is lost.
    """
    urgent(50)
    due: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        now_s = time.monotonic()
        while due and due[0][0] <= now_s:
            _, _, device, packet = heapq.heappop(due)
            os.write(device, packet)
            now_s = time.monotonic()
        wait_s = due[0][0] - now_s - SPIN_S if due else 0.1
        readable, _, _ = select.select(devices, (), (), max(0.0, wait_s))
        if not readable and not due and until():
            return
        for side in (0, 1):
            if devices[side] not in readable:
                continue
            while True:
                try:
                    packet = os.read(devices[side], 2000)
                except BlockingIOError:
                    break
                if packet[0] != 0x45 or packet[9] != socket.IPPROTO_TCP:
                    continue
                arrives_s = carry(side, packet, time.monotonic())
                if arrives_s < math.inf:
                    count += 1
                    heapq.heappush(due, (arrives_s, count, devices[1 - side], packet))


@dataclass
class Way:
    """A line in use.

    Attributes:
        log: Packets by time: "data" or "ack", sequence or acknowledgement number, bytes of payload, whether it is lost.
    """

    line: Line
    log: list[tuple[float, str, int, int, bool]] = field(default_factory=list)
    _free_s: float = 0.0
    _sent: int = 0

    def carry(self, side: int, packet: bytes, now_s: float) -> float:
        """See `emulate`. Only packets with data of side 0 take time on the wire and may be lost."""
        line = self.line
        payload = len(packet) - 20 - (packet[32] >> 4 << 2)
        lost, arrives_s = False, now_s + 0.5 * line.rtt_s
        if not side and payload:
            begin_s = max(now_s, self._free_s)
            lost = (begin_s - now_s) * line.bps > 8.0 * line.buffer_bytes + 0.5
            if not lost:
                self._free_s = begin_s + 8.0 * len(packet) / line.bps
                arrives_s = self._free_s + 0.5 * line.rtt_s
                lost = self._sent < len(line.drops) and line.drops[self._sent]
                self._sent += 1
        number = int.from_bytes(packet[28:32] if side else packet[24:28], "big")
        self.log.append((now_s, "ack" if side else "data", number, payload, lost))
        return math.inf if lost else arrives_s


def transfers(
    controls: Sequence[str],
    sizes: Sequence[int],
    lines: Sequence[Line],
    at_a_time: int = 8,
    log: list[Way] | None = None,
    parts: int = 1,
    pause_s: float = 0.0,
) -> np.ndarray:
    """Return the seconds [transfers] from handing over each message to its arrival.

    Args:
        controls: congestion control of each.
        sizes: bytes of each.
        lines: link of each.
        at_a_time: number of transfers at a time.
        log: gets the lines with their packets.
        parts: as in `send`.
        pause_s: as in `send`.
    """
    memory = mmap.mmap(-1, 16 * len(sizes))
    begins_s, ends_s = np.frombuffer(memory, np.float64).reshape(2, len(sizes))
    done, ready, begin = os.pipe(), os.pipe(), os.pipe()
    ways = [Way(line) for line in lines]

    def carry(side: int, packet: bytes, now_s: float) -> float:
        at = 22 if side else 20
        return ways[int.from_bytes(packet[at : at + 2], "big") - FIRST_PORT].carry(side, packet, now_s)

    def near() -> None:
        os.read(begin[0], 1)
        send(controls, sizes, begins_s, done[0], at_a_time, parts, pause_s)

    try:
        with ends(near, lambda: receive(sizes, ends_s, done[1], ready[1])) as (devices, ended):
            os.read(ready[0], 1)
            os.write(begin[1], b"b")
            emulate(devices, carry, ended)
    finally:
        for one in (*done, *ready, *begin):
            os.close(one)
    if log is not None:
        log += ways
    return ends_s - begins_s


def modelled_s(control: str, message_bytes: int, line: Line, parts: int = 1, pause_s: float = 0.0) -> float:
    """Return the seconds of the same transfer in the model."""
    transport = replace(TRANSPORTS["tcp"], congestion=control)
    link = ImpairedLink(
        Wire(line.bps), line.rtt_s / 2.0, line.rtt_s, transport, loss=Given(line.drops), buffer_bytes=line.buffer_bytes
    )
    return [link.send(part * pause_s, message_bytes // parts) for part in range(parts)][-1]


def refuse_elsewhere(program: str) -> None:
    """End a program with one error where it cannot run."""
    if sys.platform != "linux":
        raise click.ClickException(f"{program}: needs Linux; this is {sys.platform}")
    if os.geteuid():
        raise click.ClickException(f"{program}: needs root, for network namespaces and TUN devices; run it with sudo")
    if not os.path.exists("/dev/net/tun"):
        raise click.ClickException(f"{program}: needs /dev/net/tun; load the module tun")


def compare_streams(controls: Sequence[str]) -> None:
    """Print the times of streams in the kernel and in the model."""
    for rtt_ms, pause_ms, loss_pct in STREAMS:
        lines = [
            Line(1e7, 1e-3 * rtt_ms, drops=losses(0.01 * loss_pct, seed, 4000).tolist()) for seed in range(STREAM_SEEDS)
        ]
        shape = TOKENS, 1e-3 * pause_ms
        for name in controls:
            size = TOKENS * TOKEN_BYTES
            kernel = transfers([name] * len(lines), [size] * len(lines), lines, len(lines), None, *shape).mean()
            model = np.mean([modelled_s(name, size, line, *shape) for line in lines])
            click.echo(
                f"{name:5} {rtt_ms:4g} ms, a message every {pause_ms:g} ms, {loss_pct:2g} %  {kernel:.4g} s  {model / kernel - 1.0:+.1%}"
            )


@click.command()
@click.option(
    "--seeds", default=100, show_default=True, help="Patterns of losses of each point; half of them for 1 MB."
)
@click.option("--at-a-time", default=8, show_default=True, help="Transfers at a time.")
@click.option("--control", type=click.Choice(["cubic", "bbr"]), multiple=True, default=("cubic", "bbr"))
@click.option("--point", type=int, multiple=True, help="Numbers of points, from 0.  [default: all]")
@click.option(
    "--streams", is_flag=True, help=f"Streams of {TOKENS} messages of {TOKEN_BYTES} bytes, {STREAM_SEEDS} at a time."
)
def main(seeds: int, at_a_time: int, control: tuple[str, ...], point: tuple[int, ...], streams: bool) -> None:
    refuse_elsewhere("kernel_tcp")
    click.echo(f"Linux {os.uname().release.split('-')[0]}")
    if streams:
        compare_streams(control)
        return
    for name in control:
        for number, (size, mbps, rtt_ms, loss_pct, buffer_bytes) in enumerate(POINTS):
            if point and number not in point:
                continue
            patterns = (seeds if size < 500_000 else max(1, seeds // 2)) if loss_pct else 4
            lines = [
                Line(1e6 * mbps, 1e-3 * rtt_ms, buffer_bytes, losses(0.01 * loss_pct, seed, 4000).tolist())
                for seed in range(patterns)
            ]
            kernel = transfers([name] * patterns, [size] * patterns, lines, at_a_time)
            model = np.array([modelled_s(name, size, line) for line in lines])
            same = np.mean(abs(model - kernel) < 0.02 * kernel + 0.002)
            room = f" {buffer_bytes:g} B of buffer" if buffer_bytes < math.inf else ""
            click.echo(
                f"{name:5} {size:7} B {mbps:5g} Mbit/s {rtt_ms:4g} ms {loss_pct:4g} %{room}  {kernel.mean():.4g} s"
                f"  {model.mean() / kernel.mean() - 1.0:+.1%}  same {same:.0%}"
            )


if __name__ == "__main__":
    main()
