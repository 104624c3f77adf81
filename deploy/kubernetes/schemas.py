# ruff: noqa: INP001  a script, not a package
"""Makes schemas for kubeconform out of what a control plane validates by: Kubernetes' OpenAPI document, definitions of custom resources.

    schemas.py OUTDIR swagger.json crd.yaml...

They are strict (no field that is not defined) and whole (no reference leads elsewhere), and need no network:

    kubeconform -strict -kubernetes-version 1.36.3 -schema-location \
      'OUTDIR/../{{.NormalizedKubernetesVersion}}-standalone{{.StrictSuffix}}/{{.ResourceKind}}{{.KindSuffix}}.json' FILE
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

Schema = dict[str, Any]

_ANY: Final[Mapping[str, Schema]] = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"type": ["integer", "string"]},
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": ["number", "string"]},
}
"""Types that the document calls texts, and that YAML writes as numbers, too."""


class Kind(NamedTuple):
    """One kind of object in one version."""

    group: str
    version: str
    name: str
    schema: Schema

    @property
    def file(self) -> str:
        """As kubeconform looks for it."""
        return "-".join(part for part in (self.name.lower(), self.group.partition(".")[0], self.version.lower()) if part) + ".json"

    def standalone(self) -> Schema:
        """The schema, which also wants the kind to be this one."""
        properties = dict(self.schema.get("properties", {}))
        properties["apiVersion"] = {"const": f"{self.group}/{self.version}" if self.group else self.version}
        properties["kind"] = {"const": self.name}
        return self.schema | {"properties": properties}


def of_kubernetes(document: Mapping[str, Any]) -> Iterator[Kind]:
    """Every kind in the OpenAPI document (version 2)."""
    definitions: Mapping[str, Schema] = document["definitions"]
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", ()):
            yield Kind(kind["group"], kind["version"], kind["kind"], strict(definition, definitions, (name,)))


def of_definition(definition: Mapping[str, Any]) -> Iterator[Kind]:
    """Every version of a custom resource."""
    spec = definition["spec"]
    for version in spec["versions"]:
        schema = strict(version["schema"]["openAPIV3Schema"], {}, ())
        schema["properties"]["metadata"] = {"type": "object"}
        yield Kind(spec["group"], version["name"], spec["names"]["kind"], schema)


def strict(schema: Mapping[str, Any], definitions: Mapping[str, Schema], within: tuple[str, ...]) -> Schema:
    """A schema with all that it refers to put in place, closed against other fields.

    Args:
        schema: any part of a schema.
        definitions: what references lead to, by name.
        within: the definitions that this is a part of. One that holds itself, such as the schema of a schema, admits anything there.
    """
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name in _ANY:
            return dict(_ANY[name])
        return {} if name in within else strict(definitions[name], definitions, (*within, name))
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        return {"type": ["integer", "string"]}
    kept = {key: value for key, value in schema.items() if key in {"type", "enum", "required", "pattern", "minimum", "maximum", "minItems"}}
    if isinstance(items := schema.get("items"), Mapping):
        kept["items"] = strict(items, definitions, within)
    if isinstance(values := schema.get("additionalProperties"), Mapping):
        kept["additionalProperties"] = strict(values, definitions, within)
    if (properties := schema.get("properties")) is not None:
        required = set(schema.get("required", ()))
        kept["properties"] = {key: strict(value, definitions, within) for key, value in properties.items()}
        for key, value in kept["properties"].items():
            if key not in required and isinstance(value.get("type"), str):
                value["type"] = [value["type"], "null"]  # as good as left out
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            kept.setdefault("additionalProperties", False)
    return kept


def main(outdir: str, *sources: str) -> None:
    """Writes one file a kind."""
    folder = Path(outdir)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for source in sources:
        text = Path(source).read_text("utf-8")
        kinds = of_kubernetes(json.loads(text)) if source.endswith(".json") else of_definition(yaml.safe_load(text))
        for kind in kinds:
            (folder / kind.file).write_text(json.dumps(kind.standalone()), "utf-8")
            count += 1
    print(f"{count} schemas in {folder}")  # noqa: T201  the script's result


if __name__ == "__main__":
    main(*sys.argv[1:])
