"""Record values as producers write them, and as they should not."""

import json
import random
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

NAMES: Final = ["cpu", "mem", "disk/io", "a b", 'q"', "x\\y", "é", "", "metrics", "fields", "{n}", "value"]
TIMES: Final = ["2025-12-17T19:33:20Z", "2025-12-17 19:33:20.5+01:00", "soon", "", None, -5, True, 1e20, [1], 10**30, -0.0, 0]
JUNK: Final = [
    *(bytes([byte]) for byte in b'"\\{}[],:;=#0123456789eEiut-+. \t\r\n\0\xff\xc3\x1f\x7f'),
    *(
        b"null",
        b"true",
        b"NaN",
        b"Infinity",
        b"1e999",
        b"\\n",
        b"\\ud800",
        b"\xed\xa0\x80",
        b'"a":1',
        b'""',
        b"[[",
        b"{}",
        b"-0",
        b"\xc3\xa9",
    ),
]


def number(rng: random.Random) -> object:
    """Mostly a number of the kind that metrics have."""
    kind = rng.randrange(24)
    special: dict[int, Callable[[], object]] = {
        0: lambda: rng.randrange(-5, 5),
        1: lambda: rng.uniform(-1e3, 1e3),
        2: lambda: 10 ** rng.uniform(-40, 60),
        3: lambda: rng.randrange(10 ** rng.randrange(1, 25)),
        4: lambda: rng.choice([True, False]),
        5: lambda: rng.choice(["x", "é", None, "NaN", "1"]),
        6: lambda: rng.choice([float("nan"), float("inf"), 1e308, 5e-324, -0.0, 0, -0, 2**63, 2**64]),
        7: lambda: rng.choice([[1], {"a": 1}, {}, []]),
    }
    return special.get(kind, lambda: round(rng.uniform(0, 100), rng.randrange(15)))()


def tags(rng: random.Random) -> object:
    """Mostly what Telegraf sends."""
    kind = rng.randrange(20)
    special: dict[int, object] = {
        0: None,
        1: {"a": 5, "b": True, "c": None, "d": 1.5},
        2: {"a": [1]},
        3: {"br}ace": "{x", 'q"': "\\", "e": "", "=,": ","},
        4: {"host": "é", "l\n": "\t"},
        5: "text",
        6: {},
    }
    if kind in special:
        return special[kind]
    labels = {"host": f"web-{rng.randrange(3)}", "cpu": f"cpu{rng.randrange(3)}"}
    return labels if rng.random() < 0.7 else dict(reversed(labels.items()))


def timestamp(rng: random.Random) -> object:
    """Mostly seconds of our days."""
    kind = rng.randrange(24)
    special: dict[int, Callable[[], object]] = {
        0: lambda: rng.choice(TIMES),
        7: lambda: _iso(rng),
        8: lambda: _iso(rng),
        1: lambda: 1766000000.5 + rng.random(),
        2: lambda: 1766000000123456789,
        3: lambda: 1766000000123456.5,
        4: lambda: 10 ** rng.randrange(20),
        5: lambda: 4102444799999 + rng.randrange(3),
        6: lambda: 4102444799 + rng.randrange(3),
    }
    return special.get(kind, lambda: 1766000000 + rng.randrange(100))()


def _iso(rng: random.Random) -> str:
    date = f"{rng.choice([1969, 1970, 1972, 2000, 2024, 2025, 2099, 2100]):04}-{rng.randrange(0, 14):02}-{rng.randrange(0, 33):02}"
    time = f"{rng.randrange(25):02}:{rng.randrange(61):02}:{rng.randrange(61):02}"
    fraction = rng.choice(["", "", f".{rng.randrange(10**6)}", ".", ".1", ".0129999999", ",5"])
    return date + rng.choice("TTT t") + time + fraction + rng.choice(["Z", "Z", "", "+00:00", "-05:30", "+23:59", "+24:00", "z", "+0100"])


def plain(rng: random.Random) -> bytes:
    """A plain-json record, not always a good one."""
    metric = {"name": rng.choice(NAMES), "ts": timestamp(rng), "value": number(rng), "tags": tags(rng)}
    return _text(rng, _untidy(rng, metric))


def telegraf(rng: random.Random) -> bytes:
    """A telegraf-json record, not always a good one."""
    fields = {rng.choice(["value", "used", "v w", "é", "", '"']): number(rng) for _ in range(rng.randrange(5))}
    metric = _untidy(rng, {"fields": fields, "name": rng.choice(NAMES), "tags": tags(rng), "timestamp": timestamp(rng)})
    if rng.random() < 0.05:
        metric = {"metrics": [metric, {"fields": {"a": 1}, "name": "n", "tags": {}, "timestamp": 5}, rng.choice([None, 1, {}])]}
    return _text(rng, metric)


def influx(rng: random.Random) -> bytes:
    """Lines of line protocol, not always good ones."""
    lines = [rng.choice(["", "# comment, v=1 5", "  "]) if rng.random() < 0.05 else _line(rng) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    return rng.choice(["\n", "\n", "\r\n"]).join(lines).encode() + rng.choice([b"", b"\n", b"\r\n"])


def _line(rng: random.Random) -> str:
    odd = [
        "t",
        "False",
        "5i",
        "7u",
        '"s, \\" x=1"',
        '"two\nlines"',
        "-3i",
        "nan",
        "1e5",
        "-0",
        "-0i",
        "12345678901234567890u",
        "1.",
        "+1",
        "007i",
        "x",
    ]
    labels = tags(rng)
    text = _escaped(rng.choice([name for name in NAMES if name]))
    if isinstance(labels, dict):
        text += "".join(f",{_escaped(label)}={_escaped(str(value))}" for label, value in labels.items() if label != "l\n")
    fields = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        raw = rng.choice(odd) if rng.random() < 0.2 else str(round(rng.uniform(0, 100), 3))
        fields.append(f"{_escaped(rng.choice(['v', 'usage_idle', 'a b', 'é', 'u']))}={raw}")
    text += rng.choice([" ", " ", " ", "  "]) + ",".join(fields)
    time = rng.choice([1766000000000, 1766000000, 5, -5, 10**20]) if rng.random() < 0.1 else 1766 * 10**15 + rng.randrange(10**12)
    return text + (f" {time}" if rng.random() < 0.95 else "") + rng.choice(["", "", "", " ", "\r"])


def _escaped(text: str) -> str:
    return text.replace(",", "\\,").replace(" ", "\\ ").replace("=", "\\=")


def _untidy(rng: random.Random, metric: dict[str, object]) -> dict[str, object]:
    """Members in another order, missing, or more than expected."""
    items = [item for item in metric.items() if rng.random() > 0.02]
    if rng.random() < 0.3:
        rng.shuffle(items)
    if rng.random() < 0.1:
        items.insert(rng.randrange(len(items) + 1), ("extra", rng.choice([1, "x", "é", None, True, [1], {"a": 1}, 1.5])))
    return dict(items)


def _text(rng: random.Random, value: object) -> bytes:
    separators = rng.choice([(",", ":"), (",", ":"), (", ", ": "), (" ,\t", " :\n")])
    text = json.dumps(value, separators=separators, ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass") + rng.choice([b"", b"\n", b" \r\n"])


RECORDS: Final[dict[str, Callable[[random.Random], bytes]]] = {"plain-json": plain, "telegraf-json": telegraf, "influx": influx}
"""Format name to a maker of its records."""


def damaged(rng: random.Random, record: bytes) -> bytes:
    """The record with nothing, or one or a few things, changed in it."""
    damaged = bytearray(record)
    for _ in range(rng.choice([0, 0, 0, 0, 1, 1, 2])):
        at, kind = rng.randrange(len(damaged) + 1), rng.randrange(5)
        if kind == 0:
            damaged[at : at + 1] = rng.choice(JUNK)
        elif kind == 1:
            damaged[at:at] = rng.choice(JUNK)
        elif kind == 2:
            del damaged[at : at + rng.randrange(1, 4)]
        elif kind == 3:
            del damaged[at:]
        else:
            damaged[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(damaged)


def damaged_in_bulk(rng: np.random.Generator, records: list[bytes], n: int) -> list[bytes]:
    """n records out of these, about two of three with bytes overwritten, removed or cut off; quick enough for a million."""
    chosen = [records[i] for i in rng.integers(0, len(records), n)]
    data = np.frombuffer(b"".join(chosen), np.uint8).copy()
    ends = np.cumsum([len(record) for record in chosen])
    junk = np.frombuffer(b"".join(JUNK), np.uint8)
    places = rng.integers(0, len(data), n // 2)
    data[places] = np.where(rng.random(n // 2) < 0.7, junk[rng.integers(0, len(junk), n // 2)], rng.integers(0, 256, n // 2))
    removed = np.unique(rng.integers(0, len(data), n // 4))
    joined = np.delete(data, removed).tobytes()
    ends -= np.searchsorted(removed, ends)
    cut: NDArray[np.int64] = np.where(rng.random(n) < 0.05, rng.integers(0, 60, n), 0)
    starts = [0, *ends[:-1].tolist()]
    return [joined[start : max(start, end - less)] for start, end, less in zip(starts, ends.tolist(), cut.tolist(), strict=True)]
