"""The models of a run: sessions, captions, scores and compute times of a pair."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciar_sim.cli.common import resolve_torch_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ciar_sim.cli.recording import Recorded
    from simulator.protocol.pairs import PairManifest, PairRef
    from simulator.protocol.recording import SessionSpec


class Models:
    """Access to the models of a pair. Torch and the weights are loaded when first needed."""

    def __init__(
        self,
        pair: "PairRef",
        torch_device: str,
        max_batch: int,
        cache: Path,
        progress: Any,
        record_jobs: int | None = None,
    ) -> None:
        self.name, self.torch_device, self.max_batch = pair, torch_device, max_batch
        self.cache, self.progress, self.record_jobs = cache, progress, record_jobs
        self._pair: Any = None
        self._captions: dict[tuple[int, int], list[str]] = {}

    def pair(self) -> Any:
        if self._pair is None:
            from models.recording import load_models

            self._pair = load_models(self.name, resolve_torch_device(self.torch_device))
        return self._pair

    def record(self, specs: Any) -> Any:
        """Yield (session, recording) for the given sessions, as `simulator.protocol.cache.CachedSource` requires."""
        from simulator.protocol.pairs import pair_manifest

        manifest = pair_manifest(self.name)
        if manifest.statistics is not None:
            from simulator.protocol.statistical import record_statistical

            return ((spec, record_statistical(spec, manifest)) for spec in specs)
        return self._record(list(specs), manifest)

    def _record(self, specs: "Sequence[SessionSpec]", manifest: "PairManifest") -> "Recorded":
        from ciar_sim.cli.recording import divided, processes, record_in_processes

        stage, each = f"recording {len(specs)} sessions", manifest.image_tokens
        parts = divided(specs, each, self.max_batch, resolve_torch_device(self.torch_device))
        jobs = processes(self.record_jobs, parts, self.name, manifest)
        if jobs > 1:
            yield from record_in_processes(
                parts, jobs, self.name, self.max_batch, self.cache, each, lambda *done: self.progress(stage, *done)
            )
            return
        from models.recording import recorder_of

        before = 0

        def report(finished: int, sessions: int, decided: int, tokens: int) -> None:
            self.progress(stage, before + decided, each * len(specs))

        recorder = recorder_of(self.pair(), self.max_batch, report)
        for part in parts:
            yield from recorder.record(part)
            before += each * len(part)

    def check(self, captions: "Sequence[str]") -> None:
        """Check what recording would refuse before any pass (`models.recording.check_captions`), and the torch device."""
        if self._is_statistical():
            return
        if self.torch_device not in ("auto", "cpu"):
            resolve_torch_device(self.torch_device)
        from models.recording import check_captions

        check_captions(self.name, captions)

    def captions(self, seed: int, count: int) -> list[str]:
        """Return captions from which prompts of the pair are drawn, see `models.quality.judges.captions_of`."""
        if self._is_statistical():
            return []
        from models.quality.judges import captions_of

        key = seed, count
        if key not in self._captions:  # all cases of a run need the same ones
            self._captions[key] = captions_of(self.name)(seed, count)
        return list(self._captions[key])

    def scorer(self) -> Any:
        """Return the scorer of images, which loads torch only for images that are not in the cache. None for a pair without a judge."""
        if self._is_statistical():
            return None
        from models.quality.judges import judge_of
        from models.quality.scorer import Scorer

        judge = judge_of(self.name)
        if judge is None:
            return None
        return Scorer(self.cache, judge, lambda done, total: self.progress("reading images", done, total))

    def _is_statistical(self) -> bool:
        from simulator.protocol.pairs import pair_manifest

        return pair_manifest(self.name).statistics is not None

    def profile(self) -> Any:
        """Return the compute times of the pair on this machine, measured once and then stored in the cache folder.

        A stored profile is valid only for the same weights, torch version, processor, cores, thread setting and --torch-device. A damaged
        one is measured again.
        """
        from simulator.core.errors import ComputeError

        try:
            return self.stored_profile()
        except ComputeError:
            path = self._profile_path()
            path.unlink(missing_ok=True)
        from models.recording import profile_of

        profile = profile_of(self.pair(), lambda done, total: self.progress("measuring compute times", done, total))
        profile.write(path)
        return profile

    def stored_profile(self) -> Any:
        """Return the stored profile of an earlier run. Raises ComputeError if there is none, or it is damaged."""
        from simulator.pricing.profile import Profile

        return Profile.read(self._profile_path())

    def _profile_path(self) -> Path:
        import hashlib
        import os
        import platform

        from simulator.protocol.pairs import pair_manifest
        from simulator.protocol.recording import torch_version

        manifest = pair_manifest(self.name)
        # A profile of an earlier version holds no times of a drafter.
        weights = (manifest.weights_hash, "drafter") if manifest.has_drafter else manifest.weights_hash
        machine = (platform.machine(), _processor(), os.cpu_count(), os.environ.get("OMP_NUM_THREADS"))
        key = hashlib.sha256(repr((weights, torch_version(), machine, self.torch_device)).encode()).hexdigest()
        return self.cache / "profiles" / f"{key[:32]}.json"


def _processor() -> str:
    """Return the name of this machine's processor as reported by the system."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
