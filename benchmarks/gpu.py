"""All checks that need a GPU, in one run of under nine minutes: recorder and training against the CPU, pooling, true-shape profiles.

    python -m benchmarks.gpu OUT             # on a machine with CUDA: OUT/results.json, OUT/results.md, OUT/profile-*.json
    python -m benchmarks.gpu OUT --rehearse  # the same on the CPU at small sizes, to check that it runs

Sections come in the order of their importance, except that CUDA graphs are captured last. Results are written after every section, and
after every method of pooling, so a time limit loses only what follows. A section that raises is recorded with its error, the others still
run, and the exit code is 1. Estimated seconds on an H200, by launches of 10 us and this program's times on one CPU core: equal tokens 100
at most (its limit), training 5, training pace 15, eager profiles 60 each (30 of measuring, then each pass once), captures 75 each,
pooling the remaining 120, about 20 a method, so that some six of the methods are pooled. Random weights are made on the device.
"""

import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

import models
from benchmarks.launches import LARGER, LARGER_IMAGES, LARGER_STEPS, random_sequences, unbegun
from benchmarks.recorder import CASES, seconds_per_session, specs
from benchmarks.tiny_pair import make_tiny_pair
from models.pair import Pair, load_pair
from models.profile import RuntimeName, Sizes, hardware_name, measure_hardware, measure_model, sizes_of
from models.recorder import Recorder
from models.sampling import guide
from models.text import left_pad
from models.train.cloud import CloudStage
from models.train.loop import _Training, moved
from models.train.run import read_training_file
from models.transformer import Transformer
from simulator.core.files import write_atomically
from simulator.pricing import catalogue
from simulator.pricing.catalogue import FP16_BYTES, ModelShape
from simulator.pricing.compare import compare_with_roofline, errors_by_phase, fit_roofline, role_shapes
from simulator.pricing.profile import Profile
from simulator.protocol.recording import Recording, SessionSpec

LIMIT_S = 8.5 * 60
TOKENS_S = 100.0  # of these, for equal tokens; half of it is the CPU's work
CAPTURES_S = 150.0  # of these, left for the profiles with CUDA graphs
PACE_STEPS = 30  # timed training steps of the larger cloud of `photos`
PACE_MINUTES = 10.0
MARGIN = 1e-3  # float32 images may differ only where the logits of the alternatives are this close
POOLED_AT_LEAST = 8.0
BANDWIDTH_AT_LEAST = 0.6
POOLED: dict[str, tuple[str, dict[str, Any]]] = {  # every method; the first ones are measured first
    **CASES,
    "code": ("code", {"prefix_rate": 0.3}),
    "entropy-lens": ("entropy-lens", {}),
    "softmax-corr": ("softmax-corr", {}),
    "random": ("random", {"upload_rate": 0.3}),
    "discrete": ("discrete", {"threshold": 0.01}),
    "lantern-static": ("lantern-static", {}),
    "vvs": ("vvs", {}),
}
# model, dtype, runtime, largest batch in sessions, seconds after which cells are timed once
PROFILES: tuple[tuple[str, str, RuntimeName, int, float], ...] = (
    ("llamagen-xl", "bfloat16", "eager", 64, 30.0),
    ("llamagen-xl", "bfloat16", "cuda-graphs", 64, 45.0),
    ("anole-7b", "bfloat16", "eager", 8, 30.0),
    ("anole-7b", "bfloat16", "cuda-graphs", 8, 45.0),
)
SMALL: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 4,
    "dim": 64,
    "ffn_hidden": 128,
    "vocab_size": 256,
    "head_rows": None,
    "caption_slots": 8,
}
SMALL |= {"caption_dim": 16, "image_tokens": 16, "text_encoder": {}, "image_decoder": {"latent_side": 4, "ch": 32}}


@dataclass(frozen=True)
class Machine:
    """The device under test and the sizes.

    Attributes:
        torch_device: The device under test.
        rehearse: Whether to use small sizes, on the CPU.
        pair: A pair's folder or name.
        pooled: Sessions recorded together.
        alone: Sessions recorded one at a time.
    """

    torch_device: torch.device
    rehearse: bool
    pair: str
    pooled: tuple[int, ...]
    alone: int


def tokens_on_both(machine: Machine, left_s: Callable[[], float]) -> dict[str, Any]:
    """Compare the recorder on the device with the CPU.

    In float64 all tokens must be equal. In float32 the first difference must be between tokens with nearly equal logits.

    left_s: Seconds left for it; methods for which none are left are named.
    """
    rows: dict[str, Any] = {}
    greedy: Mapping[str, tuple[str, dict[str, Any]]] = {"base, greedy": ("base", {})}
    order = [
        *((torch.float64, label, case, False) for label, case in CASES.items()),
        *((dtype, label, case, True) for dtype in (torch.float32, torch.float64) for label, case in greedy.items()),
        *((torch.float32, label, case, False) for label, case in CASES.items()),
    ]
    pairs: dict[torch.dtype, tuple[Pair, Pair]] = {}
    for dtype, label, (method, settings), is_greedy in order:
        name = str(dtype).removeprefix("torch.")
        if rows and left_s() <= 0:
            rows[f"{name} {label}"] = {"skipped": "out of time"}
            continue
        if dtype not in pairs:
            pairs[dtype] = load_pair(machine.pair, "cpu", dtype), load_pair(machine.pair, machine.torch_device, dtype)
        here, there = pairs[dtype]
        asked = [replace(one, dtype=name) for one in specs(here, method, settings, 2)]
        if is_greedy:
            asked = [replace(one, decoding={**one.decoding, "cloud": "greedy"}) for one in asked]
        both = [[one.tokens.tolist() for one in recorded(pair, asked)] for pair in (here, there)]
        rows[f"{name} {label}"] = {"sessions": len(asked), "equal": sum(a == b for a, b in zip(*both, strict=True))}
        if is_greedy:
            parted = [margin_where_parted(here, spec, a, b) for spec, a, b in zip(asked, *both, strict=True)]
            rows[f"{name} {label}"]["margins"] = [one for one in parted if one is not None]
    done = {key: row for key, row in rows.items() if "skipped" not in row}
    exact = all(row["equal"] == row["sessions"] for key, row in done.items() if key.startswith("float64"))
    near = all(one < MARGIN for row in done.values() for one in row.get("margins", ()))
    return {"rows": rows, "passed": exact and near, "asked": f"float64 equal; float32 parts at a margin below {MARGIN}"}


def recorded(pair: Pair, asked: Sequence[SessionSpec]) -> list[Recording]:
    """Return one recording per spec, in order."""
    with torch.inference_mode():
        made = {spec.key(): recording for spec, recording in Recorder(pair, len(asked)).record(asked)}
    return [made[spec.key()] for spec in asked]


@torch.inference_mode()
def margin_where_parted(pair: Pair, spec: SessionSpec, own: Sequence[int], other: Sequence[int]) -> float | None:
    """Return the distance of the two tokens' guided logits at the first position where two greedy images differ; None if they are equal."""
    at = next((t for t, (a, b) in enumerate(zip(own, other, strict=True)) if a != b), None)
    if at is None:
        return None
    rows, valid = left_pad(pair.text.encode(spec.prompt), pair.manifest.caption_slots)
    tokens, mask = torch.tensor([list(own[:at])], dtype=torch.long), valid.unsqueeze(0)
    hidden, null = (
        pair.cloud.hidden(tokens, caption, mask)[:, -1] for caption in (rows.unsqueeze(0), pair.cloud.null_caption(1))
    )
    logits = pair.cloud.logits(guide(hidden, null, float(spec.decoding["guidance"])))[0]
    return float((logits[own[at]] - logits[other[at]]).abs())


def training_on_both(machine: Machine) -> dict[str, Any]:
    """Run three steps of AdamW in float64 on the device and on the CPU: losses and weights must agree to rounding."""
    config = load_pair(machine.pair).cloud.config
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (4, config.tokens), generator=generator)
    caption = torch.randn(4, config.caption_slots, config.caption_dim, generator=generator, dtype=torch.float64)
    start = Transformer(config).double()
    start.initialise(generator)
    found = []
    for where in (torch.device("cpu"), machine.torch_device):
        model = Transformer(config).double().to(where)
        model.load_state_dict(start.state_dict())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(3):
            logits, _ = model(tokens[:, :-1].to(where), caption.to(where), None)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.to(where).flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
        found.append((losses, torch.cat([p.detach().flatten().cpu() for p in model.parameters()])))
    (own, weights), (its, others) = found
    apart = max(abs(a - b) for a, b in zip(own, its, strict=True)), float((weights - others).abs().max())
    return {
        "losses": own,
        "loss_apart": apart[0],
        "weights_apart": apart[1],
        "passed": max(apart) < 1e-8,
        "asked": "below 1e-8",
    }


def training_pace(machine: Machine) -> dict[str, Any]:
    """Time steps of the larger cloud that `models/photos.yaml` names for a GPU, on random sequences, without torch.compile."""
    file = read_training_file(Path(models.__file__).parent / "photos.yaml")
    cloud: Any = file.stages["cloud"]
    small = {"n_layer": 1, "dim": 64, "ffn_hidden": 128, "grid": 4}
    model = replace(cloud.model, **(small if machine.rehearse else LARGER))
    settings = cloud.model_copy(update={"compile": False, "then": (), "model": model, "batch_images": LARGER_IMAGES})
    data = random_sequences(model.tokens, model.vocab_size, model.caption_slots, model.caption_dim)
    count = 2 if machine.rehearse else PACE_STEPS
    with tempfile.TemporaryDirectory() as folder, unbegun(CloudStage):
        stage = CloudStage(settings, data)
        run = _Training(stage, settings.training, Path(folder), {}, machine.torch_device.type, Console(quiet=True))
        for _ in range(2):  # loads libraries
            logged = run.advance(moved(stage.batch(run.step), machine.torch_device))
        float(logged["loss"])  # waits for the device
        begun_s = time.perf_counter()
        for _ in range(count):
            logged = run.advance(moved(stage.batch(run.step), machine.torch_device))
        float(logged["loss"])
    step_s = (time.perf_counter() - begun_s) / count
    minutes = LARGER_STEPS * step_s / 60
    return {
        "step_ms": 1e3 * step_s,
        "minutes_of_16000_steps": minutes,
        "passed": minutes <= PACE_MINUTES,
        "asked": f"the cloud's training, the longest stage, in {PACE_MINUTES:g} minutes",
    }


Note = Callable[[Mapping[str, Any]], None]


def pooling(machine: Machine, left_s: Callable[[], float], note: Note = lambda rows: None) -> dict[str, Any]:
    """Compare sessions recorded together on the device with the faster of recording one at a time there and on the CPU, per method.

    A method that fails, for instance for want of memory, leaves the others' figures.

    Args:
        machine: The device and the sizes.
        left_s: Seconds left for it. Methods, and numbers of sessions, that would take longer are left out.
        note: Called with the rows after every method.
    """
    there, here = load_pair(machine.pair, machine.torch_device), load_pair(machine.pair)
    seconds_per_session(there, specs(there, "base", {}, 1), 1)  # warm-up: loads libraries
    rows: dict[str, Any] = {}
    for label, case in POOLED.items():
        if rows and left_s() <= 0:
            rows[label] = {"skipped": "out of time"}
            continue
        row = rows[label] = {}
        try:
            few = specs(there, *case, machine.alone)
            alone = {"device": seconds_per_session(there, few, 1), "cpu": seconds_per_session(here, few, 1)}
            row["alone_s"] = alone
            expected_s = 0.0
            for count in machine.pooled:
                if count * expected_s > left_s():
                    break
                pooled = seconds_per_session(there, specs(there, *case, count), count)
                row[str(count)] = {"pooled_s": pooled, "ratio": min(alone.values()) / pooled}
                expected_s = pooled  # of a session among more of them: no longer
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
        note(rows)
    ratios = [
        max(found) for row in rows.values() if (found := [one["ratio"] for one in row.values() if "ratio" in one])
    ]
    median = statistics.median(ratios) if ratios else math.nan
    return {
        "rows": rows,
        "median_ratio": median,
        "passed": median >= POOLED_AT_LEAST and not any("error" in row for row in rows.values()),
        "asked": f"median >= {POOLED_AT_LEAST}x",
    }


def profiled(
    machine: Machine, out: Path, entry: tuple[str, str, RuntimeName, int, float], left_s: Callable[[], float]
) -> dict[str, Any]:
    """Profile a model and its one-layer form at their true shape.

    Writes the profile to a file; returns the share of the bandwidth at batch 1 and the errors of a fitted roofline.
    """
    name, dtype, runtime, sessions, budget_s = entry
    budget_s = min(budget_s, max(left_s(), 0.0))
    shape = catalogue.model(name)
    sizes: Sizes = sizes_of(name, sessions)
    if machine.rehearse:
        shape, sizes, budget_s = shape.model_copy(update=SMALL), Sizes((1, 2), (1, 4, 8), (4,)), 0.0
        dtype = "float32"
    found = measure_model(
        name, machine.torch_device, getattr(torch, dtype), sizes, budget_s=budget_s, runtime=runtime, shape=shape
    )
    found.write(out / f"profile-{name}-{runtime}.json")
    shapes = role_shapes(shape, shape.model_copy(update={"n_layer": 1, "interhead": True, "head_rows": None}))
    fit = fit_roofline(found, shapes)
    errors = errors_by_phase(compare_with_roofline(found, shapes, fit.by_role, fit.runtime))
    reached = 2 * measure_hardware(machine.torch_device).bandwidth_gb_s * 1e9
    share = _bytes_per_s(found, shape, dtype) / reached
    return {
        "runtime": runtime,
        "dtype": dtype,
        "step_ms": {role: 1e3 * table.seconds[0][0][0] for role, table in found.passes.items()},
        "bandwidth_share": share,
        "copy_gb_s": reached / 1e9,
        "fitted": {
            "runtime": fit.runtime,
            **{
                role: {
                    "bandwidth_gb_s": one.bandwidth_gb_s,
                    "tflops": one.fp16_tflops,
                    "kernel_us": one.kernel_overhead_us,
                }
                for role, one in fit.by_role.items()
            },
        },
        "errors": {f"{role} {phase}": error for (role, phase), error in errors.items()},
        "passed": max(errors.values()) <= 0.15 and (runtime == "eager" or share >= BANDWIDTH_AT_LEAST),
        "asked": "median errors of every model and phase <= 15 %"
        + ("" if runtime == "eager" else f", {BANDWIDTH_AT_LEAST:.0%} of the bandwidth at batch 1"),
    }


def _bytes_per_s(profile: Profile, shape: ModelShape, dtype: str) -> float:
    """Return the bytes of weights read per second in a step of one row with an empty cache."""
    values = torch.finfo(getattr(torch, dtype)).bits // 8 / FP16_BYTES
    return values * FP16_BYTES * shape.pass_parameters / profile.passes["cloud"].seconds[0][0][0]


def run_all(machine: Machine, out: Path, said: Callable[[str], None]) -> dict[str, Any]:
    """Run every section in order, writing the results after each."""
    started_s = time.perf_counter()

    def left_s() -> float:
        return LIMIT_S - (time.perf_counter() - started_s)

    def write() -> None:
        results["seconds"] = time.perf_counter() - started_s
        write_atomically(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
        write_atomically(out / "results.md", page(results).encode())

    def unfinished(rows: Mapping[str, Any]) -> None:
        results["sections"]["pooling"] = {"rows": rows, "passed": False, "asked": "unfinished"}
        write()

    profiles = {
        f"profile {entry[0]} {entry[2]}": lambda entry=entry: profiled(machine, out, entry, left_s)
        for entry in PROFILES
    }
    # CUDA graph captures come last: a failed one may leave the device unusable for the rest of the process.
    captures = {name: run for name, run in profiles.items() if name.endswith("cuda-graphs")}
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "tokens": lambda: tokens_on_both(machine, lambda: left_s() - (LIMIT_S - TOKENS_S)),
        "training": lambda: training_on_both(machine),
        "training pace": lambda: training_pace(machine),
        **{name: run for name, run in profiles.items() if name not in captures},
        "pooling": lambda: pooling(machine, lambda: left_s() - (CAPTURES_S if captures else 0.0), unfinished),
        **captures,
    }
    results: dict[str, Any] = {
        "device": hardware_name(machine.torch_device),
        "rehearsal": machine.rehearse,
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "sections": {},
    }
    for name, run in sections.items():
        begun_s = time.perf_counter()
        if left_s() < 0:
            results["sections"][name] = {"skipped": "out of time"}
        else:
            try:
                results["sections"][name] = run()
            # A failed section must not prevent the others: GPU time may not be available again.
            except Exception as error:
                results["sections"][name] = {"error": f"{type(error).__name__}: {error}", "passed": False}
        results["sections"][name]["seconds"] = time.perf_counter() - begun_s
        write()
        said(f"{name}: {verdict(results['sections'][name])}, {results['sections'][name]['seconds']:.0f} s")
    return results


def verdict(section: Mapping[str, Any]) -> str:
    """Return the verdict on a section: passed, not reached, failed with its error, or skipped."""
    if "skipped" in section:
        return f"skipped, {section['skipped']}"
    if "error" in section:
        return f"failed: {section['error']}"
    return "passed" if section["passed"] else "not reached"


def page(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    kind = "A rehearsal at small sizes: no figure means anything.\n\n" if results["rehearsal"] else ""
    lines = [
        f"# On {results['device']}\n\n{kind}torch {results['torch']}, {results['system']}, {results['seconds']:.0f} s in all.\n"
    ]
    for name, section in results["sections"].items():
        asked = f" (asked: {section['asked']})" if "asked" in section else ""
        lines.append(f"## {name}: {verdict(section)}{asked}\n")
        rows = section.get("rows") or {key: value for key, value in section.items() if key not in ("passed", "asked")}
        lines += ["| | |", "|---|---|", *(f"| {key} | {_flat(value)} |" for key, value in rows.items()), ""]
    return "\n".join(lines)


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_flat, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--rehearse", is_flag=True, help="On the CPU, at small sizes.")
def main(out: Path, rehearse: bool) -> None:
    """Run every section and write the results into the folder OUT."""
    if not rehearse and not torch.cuda.is_available():
        raise click.UsageError("no CUDA device here; --rehearse runs on the CPU at small sizes")
    out.mkdir(parents=True, exist_ok=True)
    if rehearse:
        make_tiny_pair(out / "tiny-pair", codebook_size=128)
        machine = Machine(torch.device("cpu"), True, str(out / "tiny-pair"), (2,), 1)
    else:
        machine = Machine(torch.device("cuda"), False, "scenes", (64, 256), 1)
    results = run_all(machine, out, click.echo)
    if any("error" in section for section in results["sections"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
