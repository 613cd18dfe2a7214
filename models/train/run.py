"""`ciar-sim train`: the stages of a pair in order, and its assembly."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.pair import export_pair
from models.train import cloud, device, drafter, phi, scene_network, tokenizer
from models.train.data import DataConfig
from simulator.errors import ScenarioError, WeightsError
from simulator.yamlfile import read

STAGES: dict[str, Callable[[Mapping[str, Any], Path, str], Any]] = {
    "tokenizer": tokenizer.run,
    "cloud": cloud.run,
    "device": device.run,
    "phi": phi.run,
    "drafter": drafter.run,
    "scene-network": scene_network.run,
}


def train_pair(
    config: Path, out: Path, stages: Sequence[str] = (), export: Path | None = None, torch_device: str = "cpu"
) -> None:
    """Train the stages of a configuration file, each in `out/<stage>`, in order; then assemble the pair into `export` if given.

    An interrupted stage goes on from its checkpoint; a finished one is not trained again, only evaluated and written anew.
    Raises ScenarioError for an unknown stage or setting, WeightsError where an earlier stage's weights are missing.
    """
    document = read(config)
    if not isinstance(document.data, dict):
        raise ScenarioError(f"{config}: a training configuration is a mapping of stages: {', '.join(STAGES)}")
    written = dict(document.data)
    shared: dict[str, Any] = {}
    if "data" in written:
        data = DataConfig.from_mapping(written.pop("data"), config.parent)
        shared = {"data": {key: value for key, value in asdict(data).items() if value is not None}}
    for name in (*written, *stages):
        if name not in STAGES:
            raise ScenarioError(f"{config}: unknown stage {name}; allowed: data, {', '.join(STAGES)}")
    for name, run in STAGES.items():
        if name in written and (not stages or name in stages):
            if not isinstance(written[name], dict):
                raise ScenarioError(f"{config}: {name} must be a mapping, got {written[name]!r}")
            try:
                run({**written[name], **shared}, out / name, torch_device)
            except FileNotFoundError as error:
                raise WeightsError(f"{error.filename}: no such file; stage {name} needs the stages before it") from None
            except PermissionError as error:
                raise WeightsError(f"{error.filename}: cannot be written: {error.strerror}") from None
    if export is not None:
        export_pair(out, export)
