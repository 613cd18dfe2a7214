"""Speed on speculative conversations of many devices, the workload of published edge-cloud speculation simulators.

    python -m benchmarks.workload_w --devices 80 --replicas 4 --json

A closed loop: for 60 simulated seconds every device starts one conversation after another, with 200 ms of thinking in between on average;
open conversations run to their end. A conversation is a prefill of 64 tokens, then rounds until it has 256 tokens. In a round the device
drafts 4 tokens at 5 ms each, and the cloud tests them in one batched pass of 10 ms (2.5 ms per token) with at most 16 jobs. A conversation
joins the shortest queue when it opens. One way takes 20 ms with 10 % jitter (uniform in the published simulators, normal with the same
deviation here), at 20 Mbit/s. Each draft is accepted with a given probability, the first rejection ends a round, and a round adds one token
of the cloud. `--no-redraft` keeps every drafted token: 64 rounds at any acceptance. An idle replica starts at once; it does not wait 2 ms
for other jobs.
"""

import json
import math
import resource
import time

import click
import numpy as np

from benchmarks.calls import Uniform, timeouts_per_second
from simulator.cloud.rules import CloudRules, CloudTier
from simulator.core.rng import stream
from simulator.engine.case import CaseInputs
from simulator.engine.device import FleetPart
from simulator.engine.run import simulate
from simulator.engine.workload import ClosedLoop
from simulator.network.access import Network
from simulator.pricing.costs import Work
from simulator.pricing.program import OTHER, PASS, SessionProgram

PROMPT, ANSWER, DRAFTED = 64, 256, 4  # tokens
DRAFT_S, VERIFY_S, PREFILL_S = 0.005, 0.0025, 0.00005  # per token
THINK_S, DURATION_S = 0.2, 60.0
ONE_WAY_S, RATE_BPS = 0.020, 20e6
JITTER_S = 0.1 * ONE_WAY_S / math.sqrt(3.0)
POOL = 256  # distinct conversations, from which each device's next one is drawn

_PASS = Work.of_pass(1, DRAFTED, 0, DRAFTED)


class Verification(Uniform):
    """Costs under which a batch takes as long as its longest job; all jobs have the same length."""

    def __init__(self) -> None:
        super().__init__(VERIFY_S * DRAFTED)


def rounds_of(draws: np.random.Generator, acceptance: float, redraft: bool) -> int:
    """Return the number of rounds until the answer is complete."""
    if not redraft:
        return -(-ANSWER // DRAFTED)
    made = rounds = 0
    while made < ANSWER:
        refused = np.flatnonzero(draws.random(DRAFTED) >= acceptance)
        made += (int(refused[0]) if len(refused) else DRAFTED) + 1
        rounds += 1
    return rounds


def conversation(rounds: int) -> SessionProgram:
    """Return a session of a prefill and `rounds` rounds of drafting and verification."""
    verify = (128 + 2 * DRAFTED, (), ((*_PASS, VERIFY_S * DRAFTED, PASS, ()),), (256 + 2 * DRAFTED, False))
    prefill = (512 + 2 * PROMPT, (), ((0, 0, 0, 0, 0, PREFILL_S * PROMPT, OTHER, ()),), (256 + 2, True))
    drafting_s = DRAFT_S * DRAFTED
    steps = ((0.0, -1.0, 0, 0), *((drafting_s, -1.0, call, call) for call in range(1, rounds + 1)))
    return SessionProgram(
        steps=steps,
        calls=(prefill, *[verify] * rounds),
        device_s=drafting_s * rounds,
        encode_s=0.0,
        image_decode_s=0.0,
        bytes_up=prefill[0] + rounds * verify[0],
        bytes_down=prefill[3][0] + rounds * verify[3][0],
        device_passes=DRAFTED * rounds,
        cloud_passes=rounds,
        cloud_call_pct=100.0 * rounds / ANSWER,
    )


def measure(devices: int, replicas: int, acceptance: float, redraft: bool) -> dict[str, float]:
    draws = stream(0, "workload-w.acceptance")
    programs = [conversation(rounds_of(draws, acceptance, redraft)) for _ in range(POOL)]
    network = Network(RATE_BPS, RATE_BPS, ONE_WAY_S, ONE_WAY_S, JITTER_S, JITTER_S)
    part = FleetPart(devices, programs, Uniform(DRAFT_S), network)
    tier = CloudTier(Verification(), replicas, 16, CloudRules(routing="join-shortest-queue"))
    inputs = CaseInputs([part], [tier], ClosedLoop(0, THINK_S, DURATION_S, POOL), seed=0)
    begin = time.perf_counter()
    result = simulate(inputs)
    seconds = time.perf_counter() - begin
    rounds = int((result.columns["calls"] - 1).sum())
    return {
        "conversations": len(result.columns["request"]),
        "rounds": rounds,
        "seconds": seconds,
        "drafted_tokens_per_s": DRAFTED * rounds / seconds,
        "events_per_round": result.events / rounds,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "conversation_mean_s": float(result.columns["latency_s"].mean()),
        "cloud_busy": result.utilisation,
    }


@click.command()
@click.option("--devices", default=80, show_default=True, type=click.IntRange(1))
@click.option("--replicas", default=4, show_default=True, type=click.IntRange(1))
@click.option("--acceptance", default=0.8, show_default=True, type=click.FloatRange(0.0, 1.0))
@click.option("--redraft/--no-redraft", default=True, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(devices: int, replicas: int, acceptance: float, redraft: bool, as_json: bool) -> None:
    found = measure(devices, replicas, acceptance, redraft)
    found["simpy_timeouts_per_s"] = timeouts_per_second()
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(
        f"{found['drafted_tokens_per_s']:,.0f} drafted tokens/s, {found['events_per_round']:.2f} events a round, "
        f"{found['rss_mb']:.0f} MB, mean conversation {found['conversation_mean_s']:.3f} s; "
        f"SimPy's bare timeout: {found['simpy_timeouts_per_s']:,.0f}/s"
    )


if __name__ == "__main__":
    main()
