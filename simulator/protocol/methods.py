"""The decoding methods: their settings with defaults, allowed ranges and sources, and the table `METHODS` with a row for each.

Imports no torch, so that a scenario can be refused before torch is loaded. The programs are in `models/methods/`.
Longer than other files, because it is the complete list of method settings.
"""

import math
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from simulator.core.errors import ScenarioError, WeightsError
from simulator.core.part import Part, mapping_or
from simulator.core.settings import Settings, refuse
from simulator.protocol.backbones import BACKBONES
from simulator.protocol.ops import INTERVAL_SAMPLES
from simulator.protocol.pairs import PairManifest
from simulator.protocol.registry import MethodKind, MethodTable


class MethodSettings(Settings):
    """Base of the settings of every decoding method.

    Attributes:
        local_tokens: Whether the device decides tokens by itself, in the mode of `Decoding.device`.
        needs_device: Whether the pair's device model takes part.
        lossless: Whether every token has base's distribution by construction, so that image quality is base's.
    """

    local_tokens: ClassVar[bool] = False
    needs_device: ClassVar[bool] = True
    lossless: ClassVar[bool] = False

    @property
    def revision_step(self) -> int:
        """Added to the method's revision: raised when a change of its programs affects only these settings."""
        return 0

    @property
    def draft_slots(self) -> int:
        """KV cache entries after the committed tokens that drafts may occupy."""
        return 0

    def opening_tokens(self, image_tokens: int) -> int:
        """Return the number of first tokens that the cloud decides alone, one per pass; prompt, seed and decoding determine them."""
        return 0

    def check(self, decoding: "Decoding", pair: PairManifest) -> None:
        """Check the settings against the decoding settings and the pair. Raises ScenarioError or WeightsError if they do not fit."""
        if self.needs_device and pair.device is None:
            raise WeightsError(
                f"the pair {pair.name} has no device model, which this method decodes with; name one with pair.device"
            )

    def can_fall_back(self, decoding: "Decoding") -> bool:
        """Return whether the device can finish the image alone after the reply to some call misses its deadline."""
        return False


class TopP(Part):
    """Tokens sampled from the smallest set with this mass, instead of the scenario's `top_p`.

    Attributes:
        top_p: The mass.
    """

    top_p: float = Field(gt=0.0, le=1.0)

    def __str__(self) -> str:
        return f"top-p {self.top_p:g}"


LocalTokens = Annotated[
    Annotated[Literal["greedy", "sampled"], Tag("<rule>")] | Annotated[TopP, Tag("<top_p>")],
    mapping_or("<rule>", "<top_p>"),
]


class Decoding(Part):
    """How distributions become tokens, the same for every method of a scenario (LlamaGen's chain: guidance, temperature, top-k, top-p)."""

    guidance: float = Field(
        3.0, ge=1.0, le=100.0, description="classifier-free guidance on both sides; 1 runs one row instead of two"
    )
    temperature: float = Field(1.0, gt=0.0, le=100.0, description="divides the logits")
    top_k: int = Field(0, ge=0, le=65536, description="keep the k largest; 0 is off")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="keep the smallest set of this mass; 1 is off")
    cloud: Literal["sampled", "greedy"] = Field("sampled", description="how the cloud picks a token")
    device: LocalTokens = Field(
        "greedy",
        description="how the device picks a token (assumption A4): greedy, sampled, or {top_p: P} (sampled with this top-p)",
    )
    text_encoder: Literal["cloud", "device"] = Field(
        "cloud",
        description="where the caption is encoded; if in the cloud, the valid caption rows are sent down once (assumption A12)",
    )

    @property
    def told(self) -> dict[str, Any]:
        """The part that is sent to the cloud in the message that opens a session."""
        told = {name: getattr(self, name) for name in ("guidance", "temperature", "top_k", "top_p")}
        return {**told, "pick": self.cloud}

    @property
    def local_sampling(self) -> tuple[bool, float]:
        """Whether the device samples its tokens, and the top-p of its distribution."""
        if isinstance(self.device, TopP):
            return True, self.device.top_p
        return self.device == "sampled", self.top_p


PrefixRate = Annotated[float, Field(ge=0.0, lt=1.0)]


class BaseSettings(MethodSettings):
    """The cloud model alone."""

    needs_device: ClassVar[bool] = False
    lossless: ClassVar[bool] = True

    deliver: Literal["stream", "ids", "image"] = Field(
        "stream",
        description="tokens one by one as they are decided, all ids at the end, or the finished image as PNG",
    )

    def opening_tokens(self, image_tokens: int) -> int:
        return image_tokens


class DeviceOnlySettings(MethodSettings):
    """The one-layer device model alone."""

    local_tokens: ClassVar[bool] = True


class CodeSettings(MethodSettings):
    """CoDe in CIAR's adaptation: the cloud decodes the first tokens, the device the rest."""

    local_tokens: ClassVar[bool] = True

    prefix_rate: PrefixRate = Field(0.3, description="share of tokens that the cloud decodes first")

    def opening_tokens(self, image_tokens: int) -> int:
        return prefix_length(self.prefix_rate, image_tokens)

    def can_fall_back(self, decoding: Decoding) -> bool:
        return decoding.text_encoder == "device"  # otherwise the device cannot start without the cloud


class GatedSettings(MethodSettings):
    """Shared by the methods whose device asks the cloud about uncertain tokens only (`models/methods/gated.py`)."""

    local_tokens: ClassVar[bool] = True

    prefix_rate: PrefixRate = Field(0.06, description="share of tokens that the cloud decodes first (paper: 0.06)")

    def opening_tokens(self, image_tokens: int) -> int:
        return prefix_length(self.prefix_rate, image_tokens)

    def can_fall_back(self, decoding: Decoding) -> bool:
        return True


ThresholdMode = Literal["const", "ema", "budget", "even", "running"]
_UPLOADS = "share of scored tokens that goes to the cloud"


class ThresholdSettings(GatedSettings):
    """An uncertainty score and the threshold it is compared with, which may adapt (assumption A3)."""

    defaults: ClassVar[dict[str, float]] = {"beta": 0.5, "decay": 0.9, "budget": 0.30}
    modes: ClassVar[dict[str, tuple[str, ...]]] = {"beta": ("ema",), "decay": ("ema",), "budget": ("budget", "even")}

    threshold: float = Field(
        0.30,
        ge=0.0,
        allow_inf_nan=True,
        description="accept locally while the score is below it (paper: 0.30); .inf never asks the cloud",
    )
    threshold_mode: ThresholdMode = Field(
        "const",
        description="const: one threshold for all images; ema: follows the mean score of the image; budget: the quantile of past scores "
        "that uploads a given share (threshold for the first 8); even: the same for the calls and positions left, so that every image "
        "makes the same number of calls; running: the score is divided by its largest so far (assumption A3)",
    )
    beta: float | None = Field(
        None, ge=0.0, le=1.0, description="ema: weight of the mean score in the threshold; default 0.5"
    )
    decay: float | None = Field(None, ge=0.0, lt=1.0, description="ema: decay of the mean score; default 0.9")
    budget: float | None = Field(
        None, ge=0.0, le=1.0, description=f"budget, even: {_UPLOADS}; 0.30 if the threshold is a number"
    )

    def value_of(self, name: str) -> float:
        """Return a setting of one mode, or its default if it is not given."""
        given: float | None = getattr(self, name)
        return self.defaults[name] if given is None else given

    @property
    def mode(self) -> ThresholdMode:
        """How the threshold changes over an image."""
        return self.threshold_mode

    @model_validator(mode="after")
    def _of_the_mode(self) -> Self:
        for name, modes in self.modes.items():
            if getattr(self, name) is not None and self.mode not in modes:
                refuse(f"goes with threshold_mode {' or '.join(modes)}, got {self.mode}", name)
        # In a scenario the threshold may be a call rate instead, see `schema/methods.py`.
        threshold: object = self.threshold
        if isinstance(threshold, float) and math.isnan(threshold):
            refuse("must be a number, got .nan", "threshold")
        if isinstance(threshold, float) and math.isinf(threshold) and self.mode == "ema":
            refuse("must be finite with threshold_mode ema, got .inf", "threshold")
        return self


class EntropyLensSettings(ThresholdSettings):
    """Entropy-Lens as a gate: the entropy of the device's prediction, divided by log V, is the uncertainty score."""

    defaults: ClassVar[dict[str, float]] = {**ThresholdSettings.defaults, "budget": 0.493}

    threshold: float = Field(
        0.5, ge=0.0, allow_inf_nan=True, description="accept locally while the entropy, in [0, 1], is below it"
    )
    threshold_mode: ThresholdMode = Field("budget", description="as in ciar")
    budget: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description=f"budget, even: {_UPLOADS}; if the threshold is a number 0.493, (0.5234 - 0.06) / 0.94 for the paper's 52.34 %",
    )


class SoftmaxCorrSettings(ThresholdSettings):
    """SoftmaxCorr as a gate, in one of three readings; it is not known which one the paper uses."""

    defaults: ClassVar[dict[str, float]] = {**ThresholdSettings.defaults, "budget": 0.3244}

    reading: Literal["max-prob", "literal", "window"] = Field(
        "max-prob",
        description="max-prob: 1 - max p; literal: the score of one token, the same for every token, so that a draw in [0, 1) breaks "
        "the tie; window: 1 - the score of the last 16 tokens",
    )
    threshold: float = Field(0.5, ge=0.0, allow_inf_nan=True, description="accept locally while the score is below it")
    threshold_mode: ThresholdMode = Field("budget", description="as in ciar")
    budget: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description=f"budget, even: {_UPLOADS}; if the threshold is a number 0.3244, (0.3649 - 0.06) / 0.94 for the paper's 36.49 %",
    )


class RandomSettings(GatedSettings):
    """Each token is uploaded at random, with a fixed probability."""

    upload_rate: float = Field(
        0.324,
        ge=0.0,
        le=1.0,
        description="probability of asking the cloud about a token; (0.3646 - 0.06) / 0.94 for the paper's 36.46 % of calls",
    )


class DiscreteSettings(ThresholdSettings):
    """CIAR's score on bounds over k sampled distributions instead of an interval."""

    k: int = Field(
        100,
        ge=INTERVAL_SAMPLES,
        le=1000,
        multiple_of=INTERVAL_SAMPLES,
        description=f"distributions sampled per token, a multiple of {INTERVAL_SAMPLES} (paper: 100 and 300)",
    )

    def check(self, decoding: Decoding, pair: PairManifest) -> None:
        super().check(decoding, pair)
        if not pair.bounds:
            raise ScenarioError(
                f"discrete: the device of the pair {pair.name} has no Inter-Head to sample distributions from"
            )


class CiarSettings(ThresholdSettings):
    """CIAR: the device decodes; the cloud decides the tokens whose Inter-Head uncertainty is high (docs/methods/ciar.md)."""

    score: Literal["u", "omega", "lower-top"] = Field(
        "u",
        description="u: sqrt(V)*Omega*Sigma (assumption A2); omega: total width; lower-top: 1 - lower bound of the top token",
    )
    bounds: Literal["quantile", "quantile-no-dro", "inter-dro"] = Field(
        "quantile",
        description="training loss of the Inter-Head's radius: quantiles of the cloud's probability, the same without the DRO term, or "
        "the published loss read literally",
    )
    reach: bool = Field(
        False, description="tighten intervals to the bounds that some distribution attains (assumption A1)"
    )
    features: Literal["fp16", "int8", "top-64", "off"] = Field(
        "fp16",
        description="interval features sent with pending tokens and added in the cloud; int8: 8 bits per number and a scale; "
        "top-64: fp16, computed from the 64 widest intervals only",
    )
    upload: Literal["lazy", "eager"] = Field(
        "lazy",
        description="lazy: pending tokens are sent with the next uncertain one; eager: each is sent at once while the device continues",
    )
    variant: Literal["resample", "verify"] = Field(
        "resample",
        description="resample: the cloud draws the uncertain token; verify: it tests the device's candidate first (assumption A6)",
    )
    revise: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="the cloud replaces the first pending token whose probability is below this; 0 is off (assumption A6)",
    )

    @property
    def revision_step(self) -> int:
        # Revision step 1: a position that is decided again counts once.
        return int(self.revise > 0 and self.threshold_mode != "const")

    def check(self, decoding: Decoding, pair: PairManifest) -> None:
        super().check(decoding, pair)
        if self.bounds not in pair.bounds:
            raise ScenarioError(
                f"ciar: the pair {pair.name} has no bounds {self.bounds}; it has {', '.join(pair.bounds) or 'no Inter-Head'}"
            )
        if self.features != "off" and not pair.phi_bottleneck:
            raise ScenarioError(
                f"ciar: the pair {pair.name} has no projection phi, which features {self.features} need; allowed: off"
            )


class SpeculativeSettings(MethodSettings):
    """Vanilla speculative decoding with the device's model as the drafter, with lossless verification."""

    lossless: ClassVar[bool] = True

    gamma: int = Field(5, ge=1, le=32, description="drafted tokens per round (assumed; the paper gives no figure)")
    residual: Literal["all", "two-phase", "top-k"] = Field(
        "two-phase",
        description="how the drafter's distribution at a rejected draft reaches the cloud: all: every draft's whole row with the drafts; "
        "two-phase: the one row, on request; top-k: every draft's non-zero entries, needs decoding.top_k > 0; greedy decoding needs none",
    )

    def check(self, decoding: Decoding, pair: PairManifest) -> None:
        super().check(decoding, pair)
        if self.residual == "top-k" and decoding.top_k == 0:
            raise ScenarioError(
                "speculative: residual top-k needs decoding.top_k > 0, got 0: no probability is zero without a filter"
            )


class DrafterSettings(MethodSettings):
    """Shared by the methods that draft trees with the pair's feature-level drafter."""

    needs_device: ClassVar[bool] = False

    drafter: Literal["device", "cloud"] = Field(
        "device",
        description="where the drafter runs; on the device it receives the cloud model's features of the caption and of every token",
    )

    def check(self, decoding: Decoding, pair: PairManifest) -> None:
        super().check(decoding, pair)
        if not pair.has_drafter:
            how = "name one with pair.device" if pair.backbone else "train the stage drafter and export the pair"
            if pair.backbone and (why := BACKBONES[pair.backbone].no_drafter):
                how = f"none is supported: {why}"
            raise WeightsError(f"the pair {pair.name} has no drafter, which this method drafts with; {how}")


class TreeSettings(DrafterSettings):
    """Draft trees that grow where the drafter's confidence is highest."""

    total_tokens: int = Field(
        59, ge=2, le=256, description="nodes per tree, root included (LANTERN's LlamaGen port: 59; EAGLE-2: 60)"
    )
    depth: int = Field(
        4, ge=1, le=9, description="expansions after the root's children (LANTERN's LlamaGen port: 4; EAGLE-2: 7)"
    )
    top_k: int = Field(
        10, ge=1, le=64, description="children per expanded node, and nodes expanded per level (both: 10)"
    )

    @model_validator(mode="after")
    def _large_enough(self) -> Self:
        nodes = self.top_k + self.depth * self.top_k**2
        if self.total_tokens - 1 > nodes:
            refuse(
                f"must be <= {nodes + 1}, the nodes that depth {self.depth} and top_k {self.top_k} yield, got {self.total_tokens}",
                "total_tokens",
            )
        return self

    @property
    def draft_slots(self) -> int:
        return max(self.total_tokens, self.depth * self.top_k)


class Eagle2Settings(TreeSettings):
    """EAGLE-2: dynamic draft trees from a feature-level drafter, with lossless verification."""

    lossless: ClassVar[bool] = True


class RelaxedSettings(DrafterSettings):
    """LANTERN's relaxed acceptance: the probability of a draft's nearest codes is added to its own, up to a bound."""

    k: int = Field(
        100,
        ge=0,
        description="nearest codes that may be added to a draft, fewer than the codebook's size (LANTERN: 1000 of 16384); 0 is off",
    )
    delta: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="absolute bound on the added probability (LANTERN: 0.1 to 0.4); default 0.1, unless lambda_ is given",
    )
    lambda_: float | None = Field(
        None,
        ge=1.0,
        description="bound relative to the draft's own p(x): (lambda_ - 1) p(x) (LANTERN++: 5 to 20); instead of delta",
    )
    removes: Literal["neighbours", "draft"] = Field(
        "neighbours",
        description="what a rejection removes from p: the draft and its k + 1 nearest codes (LANTERN's code), or the draft only",
    )

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if self.delta is not None and self.lambda_ is not None:
            refuse(
                f"goes without lambda_: the bound is absolute or relative, got delta {self.delta} and lambda_ {self.lambda_}",
                "delta",
            )
        return self

    @property
    def absolute_bound(self) -> float | None:
        """The absolute bound on the added probability; None if the bound is relative."""
        return self.delta if self.delta is not None or self.lambda_ is not None else 0.1

    def check(self, decoding: Decoding, pair: PairManifest) -> None:
        super().check(decoding, pair)
        if self.k >= pair.codebook_size:
            raise ScenarioError(
                f"LANTERN's k must be below the {pair.codebook_size} codes of the pair {pair.name}, got {self.k}"
            )


class LanternSettings(RelaxedSettings, TreeSettings):
    """LANTERN on EAGLE-2's dynamic trees."""


# Child counts of each level's nodes, the root's level first; nodes without an entry have no children.
STATIC_TREES: dict[str, tuple[tuple[int, ...], ...]] = {
    "57-nodes": ((5,), (4, 3, 3, 2, 1), (4, 3, 3, 2, 2, 1, 0, 1), (4, 3, 2, 1, 2, 1, 0, 1), (3, 2, 0, 0, 2, 1, 0, 1)),
    "25-nodes": ((4,), (3, 2, 2, 1), (3, 2, 2, 1), (3,), (2,)),
}


class VvsSettings(LanternSettings):
    """VVS: LANTERN on dynamic trees, with some rounds that are not verified."""

    interval: int | None = Field(
        None,
        ge=2,
        description="one round in this many is not verified (VVS-U; its code: 5, its paper's table: 4); default 5, unless similarity is "
        "given",
    )
    similarity: float | None = Field(
        None,
        ge=-1.0,
        le=1.0,
        description="a round is not verified if the candidate paths' mean similarity reaches this, never two in a row (VVS-D: 0.7); "
        "instead of interval",
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.interval is not None and self.similarity is not None:
            refuse(
                "goes without similarity: rounds are skipped by their number or by their paths, got interval "
                f"{self.interval} and similarity {self.similarity}",
                "interval",
            )
        return self

    @property
    def every(self) -> int:
        """`interval` with its default."""
        return 5 if self.interval is None else self.interval


class LanternStaticSettings(RelaxedSettings):
    """LANTERN++ on a static tree of drafts drawn without replacement."""

    tree: Literal["57-nodes", "25-nodes"] = Field(
        "57-nodes", description="the tree: LANTERN's for LlamaGen, or EAGLE-1's (its command line's default)"
    )

    @property
    def draft_slots(self) -> int:
        return 1 + sum(sum(counts) for counts in STATIC_TREES[self.tree])


METHODS = MethodTable(
    {
        "base": MethodKind(BaseSettings, "models.methods.base:Base", colour="#242424", marker="o"),
        "device-only": MethodKind(
            DeviceOnlySettings, "models.methods.device_only:DeviceOnly", colour="#20aa7e", marker="s"
        ),
        "speculative": MethodKind(
            SpeculativeSettings, "models.methods.speculative:Speculative", colour="#09b1f2", marker="v"
        ),
        "eagle2": MethodKind(Eagle2Settings, "models.methods.eagle2:Eagle2", colour="#ffba45", marker="^"),
        "lantern": MethodKind(LanternSettings, "models.methods.lantern:Lantern", colour="#f897cd", marker="P"),
        "lantern-static": MethodKind(
            LanternStaticSettings, "models.methods.lantern:LanternStatic", colour="#862657", marker="p"
        ),
        "vvs": MethodKind(VvsSettings, "models.methods.vvs:Vvs", colour="#98ee78", marker="d"),
        "code": MethodKind(CodeSettings, "models.methods.code:Code", colour="#025e93", marker="X"),
        "entropy-lens": MethodKind(EntropyLensSettings, "models.methods.gated:Gated", colour="#532b6f", marker="*"),
        "softmax-corr": MethodKind(SoftmaxCorrSettings, "models.methods.gated:Gated", colour="#846314", marker="<"),
        "random": MethodKind(RandomSettings, "models.methods.gated:Gated", colour="#81878d", marker=">"),
        "discrete": MethodKind(DiscreteSettings, "models.methods.gated:Gated", colour="#003063", marker="h"),
        "ciar": MethodKind(CiarSettings, "models.methods.ciar:Ciar", colour="#c55600", marker="D"),
    }
)


def prefix_length(prefix_rate: float, image_tokens: int) -> int:
    """Return m = floor(rho * T) (CIAR, prefix injection), with rho as the decimal written: 0.29 * 100 is 29, but 28.999... in floats."""
    return int(Fraction(str(prefix_rate)) * image_tokens)
