"""Training loop of all stages. A stage defines model, batches and loss; the loop can be killed and resumed at any time.

A stage is any object with

    model: nn.Module                        the trained model; its state dict (parameters and buffers) is saved, resumed and averaged
    batch(step) -> Any                      the batch of a step, a function of (seed, step); prepared in a thread, one step ahead
    loss(batch, step) -> (Tensor, dict)     scalar to minimise, and floats or 0-d tensors to log by name; runs under autocast with
                                            `amp: bf16`; the loop moves the batch and all modules of the stage to the device

and, optionally,

    begin()                                 called before step 0 of a fresh run, not on resuming
    after_step(step)                        called after the optimiser's step; may change the model in place
    parameter_groups() -> list[dict]        parameter groups of torch.optim (a group may have `weight_decay`, `lr_scale`)

All state that a stage keeps between steps must be in the model's parameters and buffers: nothing else is saved. All randomness is keyed by
(seed, step): numpy through `simulator.core.rng.stream`; torch's own generator is reseeded before every step. On a CPU with the same thread
count, an interrupted and resumed run then ends with the same bits as an uninterrupted one.

    result = train(stage, LoopSettings(steps=2000, learning_rate=1e-3), out_dir)      # call again to resume
    result.averaged                          # state dict: the exponential moving average of the weights

The learning rate is a function of the step only; `max_minutes` and Ctrl-C stop early and do not change the schedule. `out_dir` receives
checkpoint.pt, loss.csv and, at the end, loss.png and inputs.json."""

import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import BeforeValidator, Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from models.state import refuse_misfits, refuse_nonfinite
from models.train.inputs import Inputs, difference, write_inputs
from models.train.loss_log import LossLog
from models.train.muon import Muon
from models.train.stops import stops_between_steps
from simulator.core.errors import WeightsError, first_line
from simulator.core.files import write_atomically
from simulator.core.part import Part, items
from simulator.core.rng import stream

Share = Annotated[float, Field(ge=0, lt=1)]
MOST_STEPS = 10**8
MOST_IMAGES = 4096  # largest batch


class Stage(Protocol):
    """Required members of a stage; the module's docstring lists the optional hooks."""

    @property
    def model(self) -> nn.Module: ...

    def batch(self, step: int) -> Any: ...

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Mapping[str, float | Tensor]]: ...


class LoopSettings(Part):
    """The mapping under `training:` of a stage.

    The learning rate warms up linearly to `learning_rate`, then follows a cosine to `learning_rate * final_lr_ratio` at
    `steps`. The optimizer is `adamw`, or `muon` for the matrices in a transformer's layers and AdamW for all other
    parameters (`models.train.muon`).
    """

    steps: int = Field(gt=0, le=MOST_STEPS)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(default=100, ge=0, le=MOST_STEPS)
    final_lr_ratio: float = Field(default=0.05, ge=0, le=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    # Applied to parameters of two or more dimensions, unless a stage's parameter group sets its own.
    weight_decay: float = Field(default=0.05, ge=0)
    betas: Annotated[tuple[Share, Share], BeforeValidator(items)] = (0.9, 0.95)
    clip_norm: float = Field(default=1.0, gt=0)
    ema_decay: Share = 0.999
    amp: Literal["none", "bf16"] = "none"
    seed: int = Field(default=0, ge=0, lt=2**63)
    log_every_steps: int = Field(default=10, gt=0, le=MOST_STEPS)
    checkpoint_every_s: float = Field(default=60.0, ge=0)
    max_minutes: float | None = Field(default=None, ge=0)

    def lr_at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return self.learning_rate * (self.final_lr_ratio + (1 - self.final_lr_ratio) * cosine)


@dataclass(frozen=True)
class TrainResult:
    """Result of `train`.

    Attributes:
        steps: steps done so far.
        finished: whether all steps are done.
        averaged: state dict of the exponential moving average of the weights, on the CPU.
        minutes: time spent, including earlier calls.
    """

    steps: int
    finished: bool
    averaged: dict[str, Tensor]
    minutes: float

    @property
    def shipped(self) -> dict[str, Tensor]:
        """`averaged` rounded to fp16 as in weight files, so that metrics are those of the exported weights."""
        return {key: t.half().float() if t.is_floating_point() else t for key, t in self.averaged.items()}


def train(
    stage: Stage,
    settings: LoopSettings,
    out_dir: Path,
    *,
    inputs: Inputs | None = None,
    device: str = "cpu",
    console: Console | None = None,
) -> TrainResult:
    """Train `stage` up to `settings.steps`, from the checkpoint in `out_dir` if it has one.

    Args:
        stage: stage to train.
        settings: settings of the loop.
        out_dir: folder of checkpoint, log and, once finished, `inputs.json`.
        inputs: other inputs of the weights, see `models.train.inputs`; a checkpoint made from other inputs is refused.
        device: torch device that training runs on.
        console: where progress is printed; stderr by default.

    Raises:
        WeightsError: the checkpoint or loss.csv is damaged; the checkpoint was made from other inputs or with other settings (except
            time limit, checkpoint interval and logging interval); or loss or gradients are not finite.
    """
    console = console or Console(stderr=True)
    training = _Training(stage, settings, out_dir, inputs or {}, device, console)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    checkpointed = time.monotonic()
    logged: Mapping[str, float | Tensor] | None = None
    with stops_between_steps() as stopped:
        with ThreadPoolExecutor(1) as pool, Progress(*columns, console=console) as progress:
            task = progress.add_task("training", total=settings.steps, completed=training.step)
            coming = pool.submit(stage.batch, training.step)
            while training.step < settings.steps and not training.out_of_time() and not stopped():
                batch = moved(coming.result(), device)
                coming = pool.submit(stage.batch, min(training.step + 1, settings.steps - 1))
                logged = training.advance(batch)
                if (training.step - 1) % settings.log_every_steps == 0 or training.step == settings.steps:
                    text = training.note(logged)
                    progress.update(task, description=text)
                    if not console.is_terminal:  # print lines instead of a progress bar
                        line = f"step {training.step - 1} {training.minutes():.2f} min {text}"
                        console.print(line, soft_wrap=True, highlight=False)
                progress.update(task, completed=training.step)
                if time.monotonic() - checkpointed > settings.checkpoint_every_s:
                    training.refuse_divergence(logged)
                    training.save()
                    checkpointed = time.monotonic()
            coming.result()
        if logged is not None:
            training.refuse_divergence(logged)  # `max_minutes` or a signal may stop at a step that is not logged
            if stopped():
                training.save()
    return training.finish()


class _Training:
    """State of a training run and its log.

    Attributes:
        step: the next step.
        averaged: the exponential moving average of the model's state.
    """

    def __init__(
        self, stage: Stage, settings: LoopSettings, out_dir: Path, inputs: Inputs, device: str, console: Console
    ) -> None:
        """Start a fresh run, or resume from the checkpoint in `out_dir`."""
        self.stage, self.settings, self.out_dir, self.inputs = stage, settings, out_dir, inputs
        self.device, self.console = device, console
        self.started = time.monotonic()
        out_dir.mkdir(parents=True, exist_ok=True)
        # All modules of the stage, including frozen models.
        self.held = [stage.model, *(value for value in vars(stage).values() if isinstance(value, nn.Module))]
        for module in self.held:
            module.to(device)
        kind = Muon if settings.optimizer == "muon" else torch.optim.AdamW
        groups = groups_of(stage, settings)
        self.optimizer = kind(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
        saved = _read_checkpoint(out_dir / "checkpoint.pt", settings, inputs, console)
        if saved is None:
            self.step, self.earlier_minutes = 0, 0.0
            if hasattr(stage, "begin"):
                stage.begin()
            self.averaged = {key: tensor.detach().clone() for key, tensor in stage.model.state_dict().items()}
        else:
            self.step, self.earlier_minutes = saved["step"], saved["minutes"]
            _restore(stage.model, self.optimizer, saved, out_dir / "checkpoint.pt")
            self.averaged = {key: tensor.to(device) for key, tensor in saved["averaged"].items()}
            console.print(f"resuming at step {self.step} of {settings.steps}")
        self.log = LossLog(out_dir / "loss.csv", self.step)

    def minutes(self) -> float:
        """Return the minutes spent so far, including earlier calls."""
        return self.earlier_minutes + (time.monotonic() - self.started) / 60

    def out_of_time(self) -> bool:
        most = self.settings.max_minutes
        return most is not None and time.monotonic() - self.started > 60 * most

    def advance(self, batch: Any) -> dict[str, float | Tensor]:
        """Do the next step; return its loss, the norm of the gradients, and the values that the stage logs."""
        stage, settings, step, optimizer = self.stage, self.settings, self.step, self.optimizer
        torch.manual_seed(int(stream(settings.seed, "train", step).integers(2**62)))
        for group in optimizer.param_groups:
            group["lr"] = settings.lr_at(step) * group.get("lr_scale", 1.0)
        stage.model.train()
        with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=settings.amp == "bf16"):
            loss, values = stage.loss(batch, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        if hasattr(stage, "after_step"):
            stage.after_step(step)
        _average(self.averaged, stage.model, min(settings.ema_decay, (1 + step) / (10 + step)))
        self.step = step + 1
        return {"loss": loss.detach(), "grad_norm": norm, **values}

    def note(self, logged: Mapping[str, float | Tensor]) -> str:
        """Add the last step to the log; return its values as text."""
        self.refuse_divergence(logged)
        row = {name: float(value) for name, value in logged.items()}
        self.log.add(self.step - 1, {"lr": self.settings.lr_at(self.step - 1), **row})
        return " ".join(f"{name} {value:.4g}" for name, value in row.items())

    def refuse_divergence(self, logged: Mapping[str, float | Tensor]) -> None:
        """Raise WeightsError if loss or gradients of the last step are not finite."""
        loss, norm = float(logged["loss"]), float(logged["grad_norm"])
        if not math.isfinite(loss + norm):
            raise WeightsError(
                f"{self.out_dir}: the loss of step {self.step - 1} is {loss:g}, the norm of its gradients {norm:g}: the training "
                "diverges; lower training.learning_rate and delete this folder to start again"
            )

    def save(self) -> None:
        """Write log and checkpoint."""
        self.log.write()
        content = {
            "step": self.step,
            "model": self.stage.model.state_dict(),
            "averaged": self.averaged,
            "optimizer": self.optimizer.state_dict(),
            "settings": _identity(self.settings),
            "inputs": self.inputs,
            "minutes": self.minutes(),
        }
        write_atomically(self.out_dir / "checkpoint.pt", lambda file: torch.save(content, file))

    def finish(self) -> TrainResult:
        """Save checkpoint and log, and `inputs.json` if all steps are done; move the models back to the CPU."""
        self.save()
        finished = self.step == self.settings.steps
        if finished:
            write_inputs(self.out_dir, self.inputs)
        else:
            done = f"stopped after {self.minutes():.1f} minutes at step {self.step} of {self.settings.steps}"
            self.console.print(f"{done} (max_minutes)")
        self.log.plot(self.out_dir / "loss.png")
        for module in self.held:
            module.to("cpu")
        averaged = {key: tensor.cpu() for key, tensor in self.averaged.items()}
        return TrainResult(self.step, finished, averaged, self.minutes())


def moved(batch: Any, device: str | torch.device) -> Any:
    """Return the batch with all tensors on a device; tuples, lists and dataclasses are searched recursively."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, tuple | list):
        return type(batch)(moved(part, device) for part in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{field.name: moved(getattr(batch, field.name), device) for field in fields(batch)})
    return batch


def groups_of(stage: Stage, settings: LoopSettings) -> list[dict[str, Any]]:
    """Return the optimiser's parameter groups of a stage."""
    if hasattr(stage, "parameter_groups"):
        return [{"weight_decay": settings.weight_decay, **group} for group in stage.parameter_groups()]
    named = {name: parameter for name, parameter in stage.model.named_parameters() if parameter.requires_grad}
    turned = settings.optimizer == "muon"
    inner = [
        name for name, parameter in named.items() if turned and "layers" in name.split(".") and parameter.dim() == 2
    ]
    others = [parameter for name, parameter in named.items() if name not in inner]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in others if parameter.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [parameter for parameter in others if parameter.dim() < 2], "weight_decay": 0.0},
        {"params": [named[name] for name in inner], "weight_decay": settings.weight_decay, "orthogonal": True},
    ]
    return [group for group in groups if group["params"]]


@torch.no_grad()
def _average(averaged: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    state = model.state_dict()
    smooth = [key for key, tensor in state.items() if tensor.is_floating_point()]
    # On a GPU, one launch in place of one per tensor.
    torch._foreach_lerp_([averaged[key] for key in smooth], [state[key] for key in smooth], 1 - decay)
    for key in state.keys() - set(smooth):
        averaged[key].copy_(state[key])


def _identity(settings: LoopSettings) -> dict[str, Any]:
    """Return the settings that affect the weights: a resumed run must have the same."""
    free = ("log_every_steps", "checkpoint_every_s", "max_minutes")
    return {key: value for key, value in settings.model_dump().items() if key not in free}


def _read_checkpoint(path: Path, settings: LoopSettings, inputs: Inputs, console: Console) -> dict[str, Any] | None:
    if not path.exists():
        return None
    again = "delete it to start again"
    try:
        saved: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(f"{path}: damaged checkpoint ({type(error).__name__}); {again}") from error
    if not isinstance(saved, dict):
        raise WeightsError(f"{path}: holds a {type(saved).__name__}, needed a mapping; {again}")
    for key, kind in CHECKPOINT.items():
        if not isinstance(saved.get(key), kind):
            found = f"{key} is missing" if key not in saved else f"{key} is a {type(saved[key]).__name__}"
            raise WeightsError(f"{path}: damaged checkpoint: {found}; {again}")
    if not saved["step"] >= 0 or not 0 <= saved["minutes"] < math.inf:
        raise WeightsError(f"{path}: damaged checkpoint: step {saved['step']}, minutes {saved['minutes']}; {again}")
    defaults = {key: field.default for key, field in LoopSettings.model_fields.items()}
    for key, value in _identity(settings).items():
        found = saved["settings"].get(key, defaults[key])  # a setting newer than the checkpoint has its default
        if found != value:
            raise WeightsError(f"{path}: made with {key} = {found}, asked for {value}; {again}")
    if saved["step"] > settings.steps:
        raise WeightsError(f"{path}: damaged checkpoint: at step {saved['step']} of {settings.steps}; {again}")
    if "inputs" not in saved:
        console.print(f"{path}: older than the record of inputs; assuming that it was made from the current inputs")
    elif not isinstance(saved["inputs"], dict):
        raise WeightsError(f"{path}: damaged checkpoint: inputs is a {type(saved['inputs']).__name__}; {again}")
    elif other := difference(saved["inputs"], inputs):
        raise WeightsError(f"{path}: made with {other}; {again}")
    return saved


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Any], path: Path) -> None:
    """Load weights and optimiser state, and check the averages. Raises WeightsError if one does not fit or is not finite."""
    for name in ("model", "averaged"):
        try:
            refuse_misfits(model.state_dict(), saved[name], path, exact=True)
        except AttributeError as error:
            raise WeightsError(f"{path}: damaged checkpoint: {name} holds values that are not tensors") from error
        refuse_nonfinite(saved[name], path)
    model.load_state_dict(saved["model"])
    try:
        optimizer.load_state_dict(saved["optimizer"])
        for parameter, state in optimizer.state.items():
            for value in state.values():
                if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(f"state of shape {list(value.shape)} for weights of {list(parameter.shape)}")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsError(f"{path}: the optimiser's state does not fit ({first_line(error)})") from error


CHECKPOINT: dict[str, Any] = {
    "step": int,
    "model": dict,
    "averaged": dict,
    "optimizer": dict,
    "settings": dict,
    "minutes": int | float,
}
