# ruff: noqa: INP001  a script, not a package
"""Makes what of the chart comes out of other files: its schema, its README, its copies of rules and dashboards.

    python deploy/helm/generate.py

Helm packages nothing from outside of a chart's folder, hence the copies. A test holds that all is current.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from anomalyd.settings import Settings

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
CHART: Final = HERE / "anomalyd"
RULES: Final = ROOT / "deploy/prometheus/rules.yaml"

_ABSENT: Final = object()


def outputs() -> dict[Path, str]:
    """Every generated file with what belongs into it."""
    schema = values_schema()
    files = {
        CHART / "values.schema.json": json.dumps(schema, indent=1, ensure_ascii=False) + "\n",
        CHART / "README.md": readme(schema),
        CHART / "files/rules.yaml": RULES.read_text("utf-8") if RULES.exists() else "groups: []\n",
    }
    for dashboard in sorted((ROOT / "deploy/grafana").glob("*.json")):
        files[CHART / "files/dashboards" / dashboard.name] = dashboard.read_text("utf-8")
    return files


def stale() -> list[Path]:
    """Generated files that are not as they should be, and files among them that nothing generates."""
    wanted = outputs()
    there = {path for path in (CHART / "files").rglob("*") if path.is_file()}
    return sorted({path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text} | (there - wanted.keys()))


# --- schema ---------------------------------------------------------------------------------------------------------


def values_schema() -> dict[str, Any]:
    """The schema of the values: schema.yaml, closed, with descriptions and defaults from values.yaml and the configuration's own schema."""
    schema: dict[str, Any] = yaml.safe_load((HERE / "schema.yaml").read_text("utf-8"))
    text = (CHART / "values.yaml").read_text("utf-8")
    told, defaults = descriptions(text), yaml.safe_load(text)
    configuration, definitions = configuration_schema()
    schema["properties"]["config"] = configuration
    schema["properties"]["pod"] = copy.deepcopy(schema["$defs"]["pod"])  # its defaults are not those of a component's own `pod`
    _close(schema)
    _describe(schema, schema["properties"], (), told, defaults)
    # Draft 7 is what every release of Helm from 3.17 on understands.
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart anomalyd"}
    return head | {**schema, "$defs": schema["$defs"] | definitions}


def configuration_schema() -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration's schema and its definitions, without what cannot be meant in a pod.

    That are keys and URLs that hold a secret, since values end up in ConfigMaps, and HTTP servers that nobody outside reaches.
    """
    whole = Settings.model_json_schema(by_alias=True)
    definitions = {f"config-{name}": definition for name, definition in whole.pop("$defs").items()}
    for definition in [whole, *definitions.values()]:
        properties: dict[str, Any] = definition.get("properties", {})
        for key in [key for key, value in properties.items() if "writeOnly" in json.dumps(value)]:
            del properties[key]
        for value in properties.values():
            value.pop("title", None)
            value.pop("description", None)  # docs/configuration.md has them
    for name, definition in definitions.items():
        if name.endswith("HttpSettings"):  # probes come from the node, to a port that stands in the pod
            definition["properties"]["port"]["minimum"] = 1
            definition["properties"]["host"]["not"] = {"pattern": r"^(127\.|localhost$|\[?::1\]?$)"}
        for key, value in definition.get("properties", {}).items():
            if re.search("(^|_)urls?$", key):
                value.get("items", value)["not"] = {"type": "string", "pattern": "^[^/]*//[^/?#]*@"}
    renamed = json.loads(json.dumps([whole, definitions]).replace("#/$defs/", "#/$defs/config-"))
    return renamed[0], renamed[1]


def _close(schema: Any) -> None:  # noqa: ANN401  any part of a JSON Schema
    """No keys but those named, wherever some are."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            _close(value)


def _describe(
    schema: dict[str, Any], properties: dict[str, Any], path: tuple[str, ...], told: Mapping[tuple[str, ...], str], defaults: object
) -> None:
    for key, value in properties.items():
        here = (*path, key)
        default = defaults.get(key, _ABSENT) if isinstance(defaults, dict) else _ABSENT
        inner = value.get("properties")
        if here in told:
            value["description"] = told[here]
        if inner is None and default is not _ABSENT:
            value["default"] = default
        if here != ("config",) and inner is not None:
            _describe(schema, inner, here, told, default)


def descriptions(values: str) -> dict[tuple[str, ...], str]:
    """What the comments that begin with `# --` say of the keys below them, by path."""
    found: dict[tuple[str, ...], str] = {}
    path: list[tuple[int, str]] = []
    comment: list[str] | None = None
    for line in values.splitlines():
        remark = re.fullmatch(r"\s*# ?(.*)", line)
        entry = re.match(r"(\s*)([A-Za-z_]+):", line)
        if remark:
            text = remark[1]
            if text.startswith("-- "):
                comment = [text[3:]]
            elif comment is not None:
                comment.append(text)
        elif entry:
            indent = len(entry[1])
            path = [*((depth, key) for depth, key in path if depth < indent), (indent, entry[2])]
            if comment is not None:
                found[tuple(key for _, key in path)] = " ".join(comment)
            comment = None
        else:
            comment = None
    return found


# --- README ---------------------------------------------------------------------------------------------------------


def readme(schema: dict[str, Any]) -> str:
    """The chart's README: the template with the table of all values."""
    rows = ["| key | default | |", "|---|---|---|"]
    rows += [f"| `{key}` | {default} | {text} |" for key, default, text in _rows(schema["properties"], "")]
    template = (CHART / "README.md.template").read_text("utf-8")
    return template.replace("{{values}}", "\n".join(rows))


def _rows(properties: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str]]:
    for key, value in properties.items():
        if key in {"global", "config"}:
            if key == "config":
                yield key, "", value["description"]
                text = (CHART / "values.yaml").read_text("utf-8")
                told = descriptions(text)
                for path in [path for path in told if path[0] == "config" and len(path) > 1]:
                    default: Any = yaml.safe_load(text)
                    for part in path:
                        default = default[part]
                    yield ".".join(path), _shown(default), told[path]
            continue
        inner = value.get("properties")
        if inner is not None:
            yield from _rows(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _shown(value["default"]), value.get("description", "").replace("|", "\\|")


def _shown(value: object) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def main() -> None:
    """Writes every generated file, and removes copies of what is no more."""
    wanted = outputs()
    for path in stale():
        if path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], "utf-8")
        else:
            path.unlink()


if __name__ == "__main__":
    main()
