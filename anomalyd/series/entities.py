"""Entities: what single values are features of."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final

from anomalyd.selection import Features
from anomalyd.series.key import series_key


class Entities:
    """Which feature of which entity a value is.

    Args:
        names: the features, as in `selection.Features`.
        by: labels that tell entities apart. A value that lacks one of them belongs to none.
        name: of every entity's series key: `host` makes `host{host="web-01"}` of the label host.
        interval_ms: event times are rounded down to multiples of this; 0: they are taken as they are.

    Raises:
        ConfigError: the features are not valid.
    """

    def __init__(self, names: Sequence[str], by: Sequence[str], name: str, interval_ms: int = 0) -> None:
        self.names: Final = tuple(names)
        self.interval_ms: Final = interval_ms
        self.fingerprint: Final = blake2b("\n".join(self.names).encode(), digest_size=8).hexdigest()
        """Of what the numbers of features mean."""
        self._features = Features(names)
        self._by = tuple(by)
        self._name = name

    def __len__(self) -> int:
        """How many features an entity has."""
        return len(self.names)

    def place(self, name: str, labels: Mapping[str, str]) -> tuple[str, int] | None:
        """The canonical key of the entity and the number of its feature that a series is; None if it is none."""
        number = self._features.number(name, labels)
        if number is None:
            return None
        own = {label: labels.get(label, "") for label in self._by}
        return (series_key(self._name, own), number) if all(own.values()) else None
