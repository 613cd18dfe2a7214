"""Check whether a run may replace a run folder: only if the folder is of the same scenario, or with --force."""

import hashlib
import json
from pathlib import Path
from typing import Any

from simulator.core.errors import CiarSimError, RunFolderError
from simulator.core.part import found_text
from simulator.experiment.loading import load_scenario
from simulator.experiment.scenario import Scenario
from simulator.results.folder import check_run_folder, told_of

CALIBRATED = ("threshold", "threshold_mode", "budget", "upload_rate")  # settings of a method that a calibration finds


def check_replaced(folder: Path, scenario: Scenario, force: bool) -> None:
    """Raise RunFolderError if the folder is not a run folder or, without `force`, has a run of another scenario."""
    check_run_folder(folder)
    path = folder / "scenario.yaml"
    if force or not path.is_file():
        return
    # The scenario in the folder has calibrated settings, so the digest of the requested one is compared first.
    if told_of(folder, "asked_sha256") == digest(scenario):
        return
    try:
        earlier = load_scenario(path)
    except CiarSimError:  # from another version, or damaged
        differs = "which cannot be read"
    else:
        if earlier == scenario:
            return
        differs = _difference(_asked(earlier, scenario), scenario.model_dump(by_alias=True))
    raise RunFolderError(
        f"cannot write the run folder {folder}: it holds a run of another scenario, {differs}; --force replaces it, --out names "
        "another folder (in Python force=True and out=)"
    )


def digest(scenario: Scenario) -> str:
    """Return the sha256 (hex) of a scenario with its defaults."""
    return hashlib.sha256(json.dumps(scenario.model_dump(by_alias=True)).encode()).hexdigest()


def _asked(earlier: Scenario, scenario: Scenario) -> dict[str, Any]:
    """Return the earlier scenario as plain data, with the calibrated settings of the new one unless only these differ."""
    found, now = (one.model_dump(by_alias=True) for one in (earlier, scenario))
    entries = zip(found["methods"], now["methods"], scenario.methods, strict=False)
    asked = [
        {**one, **{key: other[key] for key in CALIBRATED if key in other}}
        if entry.target and one["name"] == entry.name
        else one
        for one, other, entry in entries
    ]
    same = {**found, "methods": (*asked, *found["methods"][len(asked) :])}
    return found if _plain(same) == _plain(now) else same


def _plain(data: dict[str, Any]) -> str:
    return json.dumps(data, sort_keys=True)


def _difference(before: Any, now: Any, path: str = "") -> str:
    """Describe the first setting that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            if before.get(key) != now.get(key):
                return _difference(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    if isinstance(before, list | tuple) and isinstance(now, list | tuple):
        if len(before) != len(now):
            return f"whose {path} has {len(before)} entries in place of {len(now)}"
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            if one != other:
                return _difference(one, other, f"{path}[{index}]")
    return f"whose {path} is {found_text(before)} in place of {found_text(now)}"
