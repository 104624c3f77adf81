r"""The canonical text of a series, and back.

`name{label="value",…}` with labels sorted by name and values escaped as Prometheus does (`\\`, `\"`, `\n`); no braces without labels.
Names that would make this ambiguous are quoted the way Prometheus quotes UTF-8 names, so that two series never have one key and the
key can be taken apart again: `{"odd{name",host="a"}`, `name{"odd=label"="a"}`.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

_ODD_NAME: Final = re.compile(r'[{}"\\\n]')
_ODD_LABEL: Final = re.compile(r'[{}"\\\n=,]')
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_ESCAPED: Final = re.compile(r"\\(.)")
_QUOTED: Final = r'"((?:[^"\\]|\\.)*)"'
_LABEL: Final = re.compile(rf"(?:{_QUOTED}|([^=\"]*))={_QUOTED},?")
_ODD_START: Final = re.compile(rf"\{{{_QUOTED},?")


def series_key(name: str, labels: Mapping[str, str]) -> str:
    """The canonical key of a series; `name` is not empty."""
    text = ",".join([f'{_label_name(label)}="{_escape(labels[label])}"' for label in sorted(labels)])
    if _ODD_NAME.search(name):
        return f'{{"{_escape(name)}",{text}}}' if text else f'{{"{_escape(name)}"}}'
    return f"{name}{{{text}}}" if text else name


def parse_key(key: str) -> tuple[str, dict[str, str]]:
    """Name and labels of a key that `series_key` made."""
    start = key.find("{")
    if start < 0:
        return key, {}
    if start > 0:
        name, position = key[:start], start + 1
    else:
        odd = _ODD_START.match(key)
        if odd is None:
            raise ValueError(f"not a series key: {key!r}")
        name, position = _unescape(odd[1]), odd.end()
    labels = {}
    for match in _LABEL.finditer(key, position):
        quoted, plain, value = match.groups()
        labels[plain if quoted is None else _unescape(quoted)] = _unescape(value)
    return name, labels


@lru_cache(4096)  # label names are few; if they are not, this is a bounded loss
def _label_name(label: str) -> str:
    return f'"{_escape(label)}"' if not label or _ODD_LABEL.search(label) else label


def _escape(text: str) -> str:
    return text.translate(_ESCAPES) if "\\" in text or '"' in text or "\n" in text else text


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda match: "\n" if match[1] == "n" else match[1], text) if "\\" in text else text
