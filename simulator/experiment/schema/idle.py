"""Settings that have no effect without another one. They are refused, not silently ignored, if the other is neither given nor swept.

Most such settings are checked where they are defined. The ones here may depend on the sweep, which only the whole scenario knows.
"""

from collections.abc import Container, Mapping

from pydantic import BaseModel

from simulator.core.settings import refuse
from simulator.core.yamlfile import Place

# A setting, and the one without which it has no effect.
OF_A_LINE = {
    "loss_burst_packets": "loss_pct",
    "jitter_distribution": "jitter_ms",
    "outage_every_s": "outage_ms",
}
OF_A_CLOUD = {"kv_full": "kv_memory_gb"}
OF_A_FALLBACK = dict.fromkeys(("deadline_ms", "attempts", "then"), "policy")


def refuse_idle(part: BaseModel, needs: Mapping[str, str], at: Place, swept: Container[str]) -> None:
    """Refuse a setting that is not at its default if the setting that it needs is not given.

    Args:
        part: The network, cloud or fallback.
        needs: Its settings, and the setting that each needs.
        at: Its place in the scenario.
        swept: Dotted paths of the axes.
    """
    for key, other in needs.items():
        field = type(part).model_fields.get(key)
        if field is None or getattr(part, key) == field.default or other in part.model_fields_set:
            continue
        if ".".join(map(str, (*at, other))) not in swept:
            refuse(f"does nothing without {other}, which is missing", *at, key)
