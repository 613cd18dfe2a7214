"""Settings that do nothing without another one: refused where that one is neither given nor swept, so that none is ignored in silence.

Most are refused where they are defined. Those here may have their other half in the sweep, which only the whole scenario knows.
"""

from collections.abc import Container, Mapping

from pydantic import BaseModel

from simulator.core.settings import refuse
from simulator.core.yamlfile import Place

# A setting, and the one without which it does nothing.
OF_A_LINE = {
    "loss_burst_packets": "loss_pct",
    "jitter_distribution": "jitter_ms",
    "outage_every_s": "outage_ms",
}
OF_A_CLOUD = {"kv_full": "kv_memory_gb"}


def refuse_idle(part: BaseModel, needs: Mapping[str, str], at: Place, swept: Container[str]) -> None:
    """Refuses a setting that is not at its default while what it needs is not written.

    Args:
        part: The network or cloud.
        needs: Its settings and what each needs.
        at: Where it stands.
        swept: Dotted paths of the axes.
    """
    for key, other in needs.items():
        field = type(part).model_fields.get(key)
        if field is None or getattr(part, key) == field.default or other in part.model_fields_set:
            continue
        if ".".join(map(str, (*at, other))) not in swept:
            refuse(f"does nothing without {other}, which is missing", *at, key)
