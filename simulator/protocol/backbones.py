"""The table of published models that a scenario can name as the cloud of its pair: `pair: {cloud: NAME, weights: DIR, device: DIR}`.

A new backbone is a row of `BACKBONES` and two functions, which the row names as text, so that a scenario is checked without torch.

* `find(spec)` inspects names and shapes of the files, without torch: from a `simulator.protocol.pairs.PairSpec` it returns a
  `simulator.protocol.pairs.FoundPair` with the manifest of the pair and the file of each part. It refuses parts that are missing, ambiguous
  or in another layout.
* `load(found, torch_device, dtype)` returns the `models.pair.Pair` of these files. Methods, recorder, sweeps and training use this pair
  and do not depend on the backbone. If the manifest has scales, it returns a `models.backbones.var.VarPair` instead, which recording,
  profiles and the evaluation of scores treat separately.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Backbone:
    """A published model, or all sizes of one layout.

    Attributes:
        title: description in one line.
        find: `module:function`, see above; its module loads no torch.
        load: `module:function`, see above.
        image_size: pixels per side of its images, unless the scenario sets another value.
        guidance: guidance used by its authors; the default of a scenario.
        classes: whether its prompts are class labels, not captions.
        no_drafter: why it takes no feature-level drafter; empty: it takes one.
    """

    title: str
    find: str
    load: str
    image_size: int
    guidance: float
    classes: bool = False
    no_drafter: str = ""


_FIND, _LOAD = "models.backbones.llamagen_files:find", "models.backbones.llamagen:load"
_VAR = "models.backbones.var_files:find", "models.backbones.var:load"
_HUGGING_FACE = "models.backbones.huggingface_files:find", "models.backbones.huggingface:load"
_ROWS = "it reads a row token after every row of codes, with which draft trees are not supported"
_JANUS = "no drafter in a known layout is published for it"

BACKBONES: dict[str, Backbone] = {
    "llamagen-xl-stage1": Backbone("LlamaGen text to image, stage I, 256 pixels", _FIND, _LOAD, 256, 7.5),
    "llamagen-xl-stage2": Backbone("LlamaGen text to image, stage II, 512 pixels", _FIND, _LOAD, 512, 7.5),
    "llamagen-c2i-256": Backbone("LlamaGen class to image, B to 3B, 256 pixels", _FIND, _LOAD, 256, 4.0, classes=True),
    "llamagen-c2i-384": Backbone("LlamaGen class to image, B to 3B, 384 pixels", _FIND, _LOAD, 384, 4.0, classes=True),
    "anole-7b": Backbone("Anole (Chameleon) in transformers' layout, 512 pixels", *_HUGGING_FACE, 512, 3.0),
    "lumina-mgpt-512": Backbone(
        "Lumina-mGPT in transformers' layout, 512 pixels", *_HUGGING_FACE, 512, 4.0, no_drafter=_ROWS
    ),
    "lumina-mgpt-768": Backbone(
        "Lumina-mGPT in transformers' layout, 768 pixels", *_HUGGING_FACE, 768, 4.0, no_drafter=_ROWS
    ),
    "lumina-mgpt-1024": Backbone(
        "Lumina-mGPT in transformers' layout, 1024 pixels", *_HUGGING_FACE, 1024, 4.0, no_drafter=_ROWS
    ),
    "janus-pro-1b": Backbone(
        "Janus-Pro 1B in transformers' layout, 384 pixels", *_HUGGING_FACE, 384, 5.0, no_drafter=_JANUS
    ),
    "janus-pro-7b": Backbone(
        "Janus-Pro 7B in transformers' layout, 384 pixels", *_HUGGING_FACE, 384, 5.0, no_drafter=_JANUS
    ),
    "var-d16": Backbone("VAR of depth 16, class to image, scale by scale, 256 pixels", *_VAR, 256, 4.0, classes=True),
    "var-d20": Backbone("VAR of depth 20, class to image, scale by scale, 256 pixels", *_VAR, 256, 4.0, classes=True),
    "var-d24": Backbone("VAR of depth 24, class to image, scale by scale, 256 pixels", *_VAR, 256, 4.0, classes=True),
    "var-d30": Backbone("VAR of depth 30, class to image, scale by scale, 256 pixels", *_VAR, 256, 4.0, classes=True),
    "var-d36": Backbone("VAR of depth 36, class to image, scale by scale, 512 pixels", *_VAR, 512, 4.0, classes=True),
}


def function_of(path: str) -> Callable[..., Any]:
    """Return the function of a row's `module:function`."""
    module, _, name = path.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found
