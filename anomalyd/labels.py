"""Labels of a series, under names that Prometheus and Alertmanager take."""

import re
from collections.abc import Collection, Mapping
from typing import Final

_NOT_IN_A_NAME: Final = re.compile(r"[^a-zA-Z0-9_]")


def fitted(labels: Mapping[str, str], taken: Collection[str] = ()) -> dict[str, str]:
    """The same labels under names of letters, digits and underscores; no two share one, and none is lost.

    A name that is taken already gets `exported_` in front, as Prometheus does it where a target has a label of its own; what is still taken
    then gets a number behind it. Names that begin with two underscores are Prometheus' own and lose one.

    Args:
        labels: by name, whatever it is made of.
        taken: names that others have.
    """
    result: dict[str, str] = {}
    numbers: dict[str, int] = {}  # from which on a name may be free
    for label in sorted(labels):
        name = free = fit(label)
        number = numbers.get(name, 1)
        while free in taken or free in result:
            free, number = f"exported_{name}" if number == 1 else f"exported_{name}_{number}", number + 1
        result[free], numbers[name] = labels[label], number
    return result


def fit(name: str) -> str:
    """A name for a label, of letters, digits and underscores, that does not begin with a digit or two underscores."""
    name = _NOT_IN_A_NAME.sub("_", name)
    if name.startswith("__") or not name or name[0].isdigit():
        name = f"_{name.lstrip('_')}"
    return name
