"""Turns validation errors of pydantic into messages: `dotted.key what is wrong, what was found, what is allowed`."""

import re
from collections.abc import Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from simulator.core.part import found_text
from simulator.core.yamlfile import Document, Place, did_you_mean


def first_problem(error: ValidationError, document: Document, within: Place = ()) -> tuple[Place, str]:
    """Return the first place in the file with a problem, and a message with the problem and the number of other places.

    Args:
        error: The validation error.
        document: The file.
        within: The part of the file that was validated.
    """
    problems = [((*within, *place), message) for place, message in map(explain, error.errors())]
    place, message = min(problems, key=lambda problem: document.line(problem[0]))
    others = {problem[0] for problem in problems} - {place}
    return place, message + (f" (and {len(others)} more problem{'s' if len(others) > 1 else ''})" if others else "")


_BOUNDS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": (">=", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("<=", "le"),
}
_WANTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
    "tuple_type": "a list",
    "finite_number": "a finite number",
}


_FORMS = {  # examples for sections where a user may have written a single value
    "prompts": "{count: 16}",
    "decoding": "{guidance: 3.0}",
    "compute": "{device: snapdragon-8-gen-3, cloud: a100}",
    "cloud": "{replicas: 2}",
    "fallback": "{policy: device, deadline_ms: 500}",
    "workload": "{devices: 4, arrivals: {poisson_per_s: 0.5}, duration_s: 60}",
    "sweep": "{network.rtt_ms: [5, 50]}",
}


def explain(details: ErrorDetails) -> tuple[Place, str]:
    """Return the place of a pydantic error in the file, and the message."""
    # "[key]" is pydantic's mark of a problem with the key of a mapping, which the part before it names.
    place: Place = tuple(
        part for part in details["loc"] if not (isinstance(part, str) and part.startswith(("<", "[key]")))
    )
    kind, context, found = details["type"], details.get("ctx", {}), details.get("input")
    if place[:1] == ("sweep",) and len(place) == 4:
        place = place[:3]  # the last part names a member of the union Scalar
        kind = "scalar"
    if kind == "refused":
        return (*place, *context["at"]), context["message"]
    if kind == "missing":
        return place, "is missing"
    if kind in _BOUNDS:
        sign, key = _BOUNDS[kind]
        return place, f"must be {sign} {context[key]:g}, got {found_text(found)}"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
        return (
            place,
            f"must be {context['expected'].replace(chr(39), '')}, got {found_text(found)}{did_you_mean(found, allowed)}",
        )
    if kind == "multiple_of":
        return place, f"must be a multiple of {context['multiple_of']:g}, got {found_text(found)}"
    if _WANTED.get(kind) == "a mapping" and place and place[-1] in _FORMS:
        return place, f"must be a mapping such as {_FORMS[str(place[-1])]}, got {found_text(found)}"
    if kind in _WANTED:
        return place, f"must be {_WANTED[kind]}, got {found_text(found)}"
    if kind == "scalar":
        hint = ""
        if place[0] == "sweep" and isinstance(found, Mapping) and found:
            keys = " and ".join(f"{place[1]}.{key}" for key in found)
            hint = f"; make {keys} axes of their own" + (
                ", and zip them if they change together" if len(found) > 1 else ""
            )
        return place, f"must be a single value, got {found_text(found)}{hint}"
    if kind == "too_short":
        return place, "must hold at least one entry, got an empty list"
    if kind == "string_pattern_mismatch":
        of_label = "text on one line without blanks at its ends"
        allowed_text = "letters, digits, . _ - and no leading . or -" if place == ("name",) else of_label
        return place, f"must be {allowed_text}, got {found_text(found)}"
    if kind == "value_error":
        return place, str(context["error"])
    return place, f"{details['msg'][:1].lower()}{details['msg'][1:]}, got {found_text(found)}"


def dotted(place: Place) -> str:
    """Return a place as text: `methods[6].name`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def subject(place: Place) -> str:
    """Return the start of a message: the place and a space; empty for the whole file."""
    return f"{dotted(place)} " if place else ""
