"""Which series of a stream are watched, and which labels make a series.

A selector is a glob over the name, label matchers in braces, or both: `cpu.*`, `net.*{host=~"web-.*"}`, `{env!="test"}`. Globs are those
of the shell (`*`, `?`, `[ab]`, `[!ab]`), matchers those of Prometheus: `=`, `!=`, `=~`, `!~`, expressions anchored at both ends, a label
that a series lacks counts as empty, all matchers of a selector must hold.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from anomalyd.errors import ConfigError

_SELECTOR: Final = re.compile(r"(?P<glob>[^{]*)(?:\{(?P<matchers>.*)\})?", re.DOTALL)
_MATCHER: Final = re.compile(
    r"""\s*(?P<label>[^=!~",{}\s]+)\s*(?P<operator>=~|!~|!=|=)\s*(?P<value>"(?:[^"\\]|\\.)*"|'[^']*')\s*(?:,|$)""", re.DOTALL
)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_HELP: Final = 'valid are a name glob and label matchers, for instance cpu.* or net.*{host=~"web-.*",env!="test"}'


@dataclass(frozen=True, slots=True)
class _Matcher:
    label: str
    value: re.Pattern[str]
    wanted: bool

    def holds(self, labels: Mapping[str, str]) -> bool:
        return (self.value.fullmatch(labels.get(self.label, "")) is not None) is self.wanted


@dataclass(frozen=True, slots=True)
class _Selector:
    name: re.Pattern[str]
    matchers: tuple[_Matcher, ...]

    def holds(self, name: str, labels: Mapping[str, str]) -> bool:
        return self.name.match(name) is not None and all(matcher.holds(labels) for matcher in self.matchers)


class Selection:
    """The choice of a stream: what is included (everything, if nothing is named), what of it is excluded, which labels are dropped.

    Selectors see the labels as they arrive, before any is dropped. Dropped labels take no part in the series: what differs only in them
    is one series.

    Raises:
        ConfigError: a selector, an expression or a glob is invalid.
    """

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = (), drop_labels: Sequence[str] = ()) -> None:
        self._include = tuple(_selector(text, "include") for text in include)
        self._exclude = tuple(_selector(text, "exclude") for text in exclude)
        self._drop = (
            re.compile("|".join(fnmatch.translate(_not_empty(glob, "drop_labels")) for glob in drop_labels)) if drop_labels else None
        )

    def admits(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether the series is watched."""
        if self._include and not any(selector.holds(name, labels) for selector in self._include):
            return False
        return not (self._exclude and any(selector.holds(name, labels) for selector in self._exclude))

    def keep(self, labels: Mapping[str, str]) -> dict[str, str]:
        """The labels that form the series: not dropped and, as in Prometheus, not empty."""
        drop = self._drop
        if drop is None:
            return {label: value for label, value in labels.items() if value}
        return {label: value for label, value in labels.items() if value and drop.match(label) is None}


MOST_FEATURES: Final = 128
"""Of an entity: its state row grows with each."""


class Features:
    """The features of entities, numbered in their order.

    A feature is a metric's name, with label matchers where an entity has several series of that name: `mem.used_percent`,
    `cpu.usage_idle{cpu="cpu-total"}`. Matchers see the labels as they arrive. A series that matches several features is the first of them.

    Raises:
        ConfigError: a feature is no name with matchers, or is given twice, or they are too few or too many.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if not 2 <= len(names) <= MOST_FEATURES:
            raise ConfigError(f"names: got {len(names)}, an entity has 2 to {MOST_FEATURES} features")
        if len(set(names)) < len(names):
            raise ConfigError(f"names: {next(name for name in names if list(names).count(name) > 1)!r} is given twice")
        self._numbers: dict[str, list[tuple[int, Selection | None]]] = {}
        for number, text in enumerate(names):
            metric, selection = _feature(text)
            self._numbers.setdefault(metric, []).append((number, selection))

    def number(self, name: str, labels: Mapping[str, str]) -> int | None:
        """Which feature a series is, None if it is none."""
        for number, selection in self._numbers.get(name, ()):
            if selection is None or selection.admits(name, labels):
                return number
        return None

    @staticmethod
    def check(text: str) -> None:
        """Raises ConfigError if this is no feature."""
        _feature(text)


def _feature(text: str) -> tuple[str, Selection | None]:
    """A metric's name, and what its labels have to be like."""
    selection = Selection(include=(text,))
    metric = text.partition("{")[0].strip()
    if not metric or any(character in metric for character in "*?["):
        raise ConfigError(
            f'names: {text!r} has no name without wildcards: a feature is one metric, such as mem.used or cpu.usage{{cpu="cpu-total"}}'
        )
    return metric, selection if "{" in text else None


def _selector(text: str, field: str) -> _Selector:
    parts = _SELECTOR.fullmatch(_not_empty(text, field))
    if parts is None:
        raise ConfigError(f"{field}: {text!r} is no selector: {_HELP}")
    matchers, rest = [], parts["matchers"] or ""
    while rest.strip():
        match = _MATCHER.match(rest)
        if match is None:
            raise ConfigError(
                f'{field}: {text!r} has no valid matcher at {rest!r}: valid are label="value", !=, =~ and !~, with commas between'
            )
        matchers.append(_matcher(match, text, field))
        rest = rest[match.end() :]
    return _Selector(re.compile(fnmatch.translate(parts["glob"].strip() or "*")), tuple(matchers))


def _matcher(match: re.Match[str], text: str, field: str) -> _Matcher:
    quoted, operator = match["value"], match["operator"]
    value = quoted[1:-1]
    if operator.endswith("~"):
        # In an expression a backslash belongs to the expression; only the quote itself is escaped.
        expression = value.replace(r"\"", '"') if quoted[0] == '"' else value
    else:
        expression = re.escape(_ESCAPED.sub(lambda e: "\n" if e[1] == "n" else e[1], value) if quoted[0] == '"' else value)
    try:
        pattern = re.compile(expression, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"{field}: {text!r} has an invalid expression {value!r}: {error}") from None
    return _Matcher(match["label"], pattern, wanted=not operator.startswith("!"))


def _not_empty(text: str, field: str) -> str:
    if not text.strip():
        raise ConfigError(f"{field}: got an empty text: {_HELP if field != 'drop_labels' else 'valid are label names and globs'}")
    return text
