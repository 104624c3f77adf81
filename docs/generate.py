# ruff: noqa: INP001  a script, not a package
"""Writes the reference pages that come out of the code: `python docs/generate.py`. A test fails while they differ from it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from anomalyd.settings import Settings, models_in
from anomalyd.telemetry.events import EVENTS
from anomalyd.telemetry.metrics import Metrics
from anomalyd.telemetry.notifying import NotifyMetrics
from anomalyd.telemetry.retraining import RetrainMetrics

HERE = Path(__file__).parent


def configuration() -> str:
    """docs/configuration.md: every key with its default and what is valid."""
    return "\n".join([_CONFIGURATION, *_section(Settings, "")]).rstrip() + "\n"


def metrics() -> str:
    """docs/metrics.md: every metric and every event of the log."""
    rows = ["| metric | type | labels | says |", "|---|---|---|---|"]
    rows += [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |"
        for metric in dict.fromkeys(
            (*Metrics().declared, *RetrainMetrics().declared, *NotifyMetrics().declared)
        )  # those of every process once
    ]
    events = ["| event | level | means | do |", "|---|---|---|---|"]
    events += [f"| `{name}` | {event.level} | {event.meaning} | {event.action} |" for name, event in EVENTS.items()]
    return "\n".join([_METRICS, *rows, _EVENTS, *events]) + "\n"


def _section(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The keys of a mapping as a table, then its sections."""
    schema = model.model_json_schema()["properties"]
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    plain = {name: field for name, field in fields.items() if next(models_in(field.annotation), None) is None}
    if plain:
        yield from ["", "| key | default | valid | says |", "|---|---|---|---|"]
        yield from (
            f"| `{prefix}{name}` | {_default(field)} | {_valid(field, schema[name])} | {_prose(field)} |" for name, field in plain.items()
        )
    for name, field in fields.items():
        inner = next(models_in(field.annotation), None)
        if inner is not None:
            path = f"{prefix}{name}" + ("[]" if "tuple" in str(field.annotation) else "")
            yield from ["", f"## {path}", "", _prose(field)]
            if path == "streams[].alerts":
                yield from ["", f"Keys: {', '.join(f'`{key}`' for key in inner.model_fields)}, as in [alerts](#alerts)."]
            else:
                yield from _section(inner, f"{path}.")


def _prose(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", r"\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "" if value in (None, (), {}, PydanticUndefined) else f"`{json.dumps(value)}`"


def _valid(field: FieldInfo, schema: dict[str, Any]) -> str:
    if SecretStr in (field.annotation, *getattr(field.annotation, "__args__", ())):
        return "secret text"
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    return " or ".join(_kind(kind) for kind in kinds)


def _kind(kind: dict[str, Any]) -> str:
    if "enum" in kind or "const" in kind:
        return ", ".join(f"`{value}`" for value in kind.get("enum", [kind.get("const")]))
    name = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`"}.get(kind["type"], "")
    if kind["type"] == "array":
        return f"list of {_kind(kind['items'])}" if "enum" in kind["items"] else "list of texts"
    if kind["type"] == "object":
        return "mapping of texts"
    if kind.get("format") in _FORMATS:
        return _FORMATS[kind["format"]]
    low, above, high = kind.get("minimum"), kind.get("exclusiveMinimum"), kind.get("maximum")
    bounds = (
        [f"from {low:g}" if isinstance(low, float) else f"from {low}"]
        if low is not None
        else [f"above {above}"]
        if above is not None
        else []
    )
    bounds += [f"to {high}"] if high is not None else []
    return " ".join([name, *bounds])


_FORMATS = {"date-time": "date and time", "path": "file", "file-path": "file", "directory-path": "folder"}

_CONFIGURATION = """# Configuration

<!-- Made by `python docs/generate.py` out of anomalyd/settings.py; edit that. -->

One YAML file, `-c CONFIG`. Every key has a default but where records come from:

```yaml
kafka:
  bootstrap_servers: kafka-1:9092
streams:
  - name: hosts
    topics: [metrics]
    format: telegraf-json
```

- `anomalyd config check -c CONFIG` names every key at fault, what it got and what is valid; `config show` prints the effective
  settings with secrets masked; `config schema` prints a JSON Schema for editors.
- Environment variables `ANOMALYD_` override the file, with `__` between levels: `ANOMALYD_KAFKA__BOOTSTRAP_SERVERS=kafka-2:9092`
  changes that key and leaves its siblings. Lists are replaced whole, as JSON: `ANOMALYD_STREAMS='[{"name": "hosts", …}]'`. Empty variables
  count as not set.
- Secrets come from mounted files, the keys that end in `_file`; see [security.md](security.md).
- Unknown keys are refused, in the file and in variables with `__`.
- [configs/](../configs/README.md) has a commented file for each common case.

## top level"""

_METRICS = """# Metrics and log events

<!-- Made by `python docs/generate.py` out of anomalyd/telemetry; edit that. -->

## Metrics

`GET /metrics`. Counters are preset to zero; no series is ever a label. The usual `process_*` and `python_*` metrics come with them.
"""

_EVENTS = """
## Log events

The log goes to stderr: JSON lines off a terminal (`time`, `level`, `event`, then fields), readable on one; `log.level` and `log.format`
change that. Event names and levels are stable. A level says what is asked of you: error: act; warning: look, it may pass by itself;
info: nothing; debug: for whoever hunts a problem.
"""


if __name__ == "__main__":
    (HERE / "configuration.md").write_text(configuration(), "utf-8")
    (HERE / "metrics.md").write_text(metrics(), "utf-8")
