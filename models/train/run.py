"""`ciar-sim train`: reads a training file, trains the stages of a pair in order, and assembles the pair."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from models.pair import export_pair, refuse_foreign
from models.scenes import IMAGE_SIZE
from models.train import cloud, device, drafter, judge, phi, scene_network, tokenizer
from models.train.cloud import CloudConfig
from models.train.data import DataConfig
from models.train.device import DeviceConfig
from models.train.drafter import DrafterConfig
from models.train.inputs import READS, refuse_outdated
from models.train.judge import JudgeConfig
from models.train.memory import least_bytes
from models.train.phi import PhiConfig
from models.train.scene_network import SceneNetworkTraining
from models.train.sequences import SequenceSettings
from models.train.tokenizer import TokenizerConfig
from simulator.core.errors import ScenarioError, WeightsError, reason
from simulator.core.files import why_unusable
from simulator.core.part import Part, found_text
from simulator.core.problems import first_problem, subject
from simulator.core.settings import refuse
from simulator.core.yamlfile import Place, did_you_mean, read
from simulator.experiment.estimate import memory_bytes

RUN: dict[str, Callable[[Any, DataConfig | None, Path, str], Any]] = {
    "tokenizer": tokenizer.run,
    "cloud": cloud.run,
    "device": device.run,
    "phi": phi.run,
    "drafter": drafter.run,
    "judge": judge.run,
    "scene-network": lambda settings, _, out_dir, torch_device: scene_network.run(settings, out_dir, torch_device),
}

MUON_STAGES = ("cloud", "device")  # stages whose models have matrices that `groups_of` gives to Muon


class TrainingFile(Part):
    """A mapping for each stage to train, and optionally `data:`, a data set that replaces the scenes."""

    data: DataConfig | None = None
    tokenizer: TokenizerConfig | None = None
    cloud: CloudConfig | None = None
    device: DeviceConfig | None = None
    phi: PhiConfig | None = None
    drafter: DrafterConfig | None = None
    judge: JudgeConfig | None = None
    scene_network: SceneNetworkTraining | None = Field(default=None, alias="scene-network")

    @property
    def stages(self) -> dict[str, Any]:
        """Settings of the stages in the file, in the order of training."""
        named = {name: getattr(self, name.replace("-", "_")) for name in RUN}
        return {name: settings for name, settings in named.items() if settings is not None}

    @model_validator(mode="after")
    def _sources(self) -> "TrainingFile":
        reading: dict[Place, Any] = {
            (name,): settings for name, settings in self.stages.items() if isinstance(settings, SequenceSettings)
        }
        if self.cloud is not None:
            reading |= {("cloud", "then", index): settings for index, settings in enumerate(self.cloud.rounds()[1:])}
        for place, settings in reading.items():
            if (settings.scenes is None) == (self.data is None):
                found = "both are given" if self.data is not None else "both are missing"
                refuse(f"or the file's data must be given, not both: {found}", *place, "scenes")
        if self.judge is not None and (self.data is None or self.data.photos is None):
            refuse("judges photographs and needs data.photos", "judge")
        if self.tokenizer is not None and self.data is not None:
            for key in ("scenes_seed", "held_out_seed", "object_weight"):
                if key in self.tokenizer.model_fields_set:
                    refuse("applies to scenes only; this file reads images from data", "tokenizer", key)
        return self

    @model_validator(mode="after")
    def _optimizers(self) -> "TrainingFile":
        for name, settings in self.stages.items():
            if settings.training.optimizer == "muon" and name not in MUON_STAGES:
                refuse(
                    f"must be adamw; muon is for the stages {' and '.join(MUON_STAGES)}", name, "training", "optimizer"
                )
        return self

    @model_validator(mode="after")
    def _sizes(self) -> "TrainingFile":
        if self.judge is not None and self.data is not None and self.data.image_size % 16:
            refuse(f"must be a multiple of 16 for the stage judge, got {self.data.image_size}", "data", "image_size")
        if self.tokenizer is None:
            return self
        made = self.tokenizer.model
        side = IMAGE_SIZE if self.data is None else self.data.image_size
        if side % made.downsample:
            refuse(
                f"shrinks images by {made.downsample}, which does not divide their {side} pixels",
                "tokenizer",
                "model",
            )
        if self.cloud is not None:
            for key, size in (("vocab_size", made.codebook_size), ("grid", side // made.downsample)):
                found = getattr(self.cloud.model, key)
                if found != size:
                    refuse(f"must be {size}, the tokenizer's, got {found}", "cloud", "model", key)
        return self


def read_training_file(path: Path) -> TrainingFile:
    """Read and check a training file. Raises ScenarioError with file and line."""
    document = read(path)
    if not isinstance(document.data, dict):
        raise ScenarioError(
            f"{document.where(())}: a training file must be a mapping of stages, got {found_text(document.data)}"
        )
    try:
        return TrainingFile.model_validate(document.data, context={"folder": path.parent})
    except ValidationError as error:
        place, message = first_problem(error, document)
    raise ScenarioError(f"{document.where(place)}: {subject(place)}{message}")


def refuse_out(folder: Path) -> None:
    """Raise WeightsError if the training folder cannot be written to; called before any work."""
    if why := why_unusable(folder):
        raise WeightsError(f"cannot write the training folder {folder}: {why}")


def train_pair(
    config: Path,
    out: Path,
    stages: Sequence[str] = (),
    export: Path | None = None,
    torch_device: str = "cpu",
    data_folder: Path | None = None,
) -> None:
    """Train the stages of a training file, each in `out/<stage>`, in order, and assemble the pair.

    An interrupted stage resumes from its checkpoint. A finished stage is not trained again, but it is evaluated and its
    files are rewritten.

    Args:
        config: the training file.
        out: folder of checkpoints and logs.
        stages: stages to train; empty for all stages of the file.
        export: folder of the assembled pair; None: the pair is not assembled.
        torch_device: torch device that training and its metrics run on.
        data_folder: replaces the folder in the file's `data`.

    Raises:
        ScenarioError: an unknown stage or setting, or sizes that cannot fit this machine's memory; nothing is trained.
        WeightsError: weights of an earlier stage are missing or were trained from other weights than those now in
            `out`; a checkpoint is damaged or was made from other inputs; or nothing can be written to `out`.
        DataError: training data, or a file prepared from them, is damaged.
    """
    refuse_out(out)
    if export is not None:
        refuse_foreign(export)
    file = read_training_file(config)
    if data_folder is not None and file.data is None:
        raise ScenarioError(f"{config}: reads scenes and no folder of images, so --data does not apply")
    data = file.data if file.data is None or data_folder is None else file.data.at(data_folder)
    there = memory_bytes()
    for name, settings in file.stages.items():
        if isinstance(settings, CloudConfig | TokenizerConfig | JudgeConfig | SceneNetworkTraining):
            needed = least_bytes(settings, None if data is None else data.image_size)
            if needed > there:
                said = f"needs at least {needed / 1e9:.3g} GB of memory, and this machine has {there / 1e9:.3g} GB"
                raise ScenarioError(f"{config}: {name} {said}")
    for name in stages:
        if name not in file.stages:
            raise ScenarioError(f"{config}: has no stage {name}{did_you_mean(name, file.stages)}")
    for name, settings in file.stages.items():
        if stages and name not in stages:
            continue
        try:
            refuse_outdated(out, READS.get(name, ()))
            RUN[name](settings, data, out / name, torch_device)
        except ScenarioError as error:
            raise ScenarioError(f"{config}: {error}") from None
        except OSError as error:
            place = Path(str(error.filename or out / name))
            if isinstance(error, FileNotFoundError) and out in place.parents:
                raise WeightsError(f"{place}: no such file; stage {name} needs the stages before it") from None
            raise WeightsError(f"{place}: {reason(error)}") from None
    if export is not None:
        refuse_outdated(out, tuple(READS))
        export_pair(out, export, name=config.stem)
