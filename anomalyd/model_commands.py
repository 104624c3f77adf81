"""The commands about models: what there is, how two of them compare, which one scores a stream."""

import asyncio
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from anomalyd.detector import Artifact, Layout
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.errors import ArtifactError, ConfigError
from anomalyd.kafka import models as topic
from anomalyd.kafka.registry import SHORTEST_PREFIX, Champion, Decision, Packed, Registry
from anomalyd.settings import SHIPPED, Settings, StreamSettings
from anomalyd.stream_model import artifact_of, suited

Facts = dict[str, Any]

_SHORT: Final = 12
"""Characters of a hash that people are shown."""
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_NOT_SHOWN: Final = frozenset({"hash", "name", "version"})


@dataclass(frozen=True, slots=True)
class Found:
    """A model that was found somewhere."""

    hash: str
    where: str
    """topic, shipped, or its folder."""
    artifact: Artifact | None
    """None: it can't be used."""
    content: Callable[[], bytes]
    """Its bytes."""
    problem: str = ""
    folder: Path | None = None
    """Of --dir."""


@dataclass(slots=True)
class Shelf:
    """All that was found, and what the topic says about it."""

    models: list[Found] = field(default_factory=list)
    registry: Registry = field(default_factory=Registry)

    def chosen(self, name: str) -> Found:
        """The one that is meant: a folder, the name of one that was looked through, the beginning of a hash, or `shipped`.

        Raises:
            ConfigError: there is none, or several.
            ArtifactError: it can't be used.
        """
        if name == SHIPPED:
            found = _in_folder(shipped(), SHIPPED)
        elif (Path(name) / artifacts.MANIFEST_FILE).is_file():
            found = _in_folder(Path(name), name)
        else:
            found = self._named(name)
        if found.artifact is None:
            raise ArtifactError(found.problem)
        return found

    def _named(self, name: str) -> Found:
        in_folders = {one.where: one for one in self.models if one.folder is not None and one.folder.resolve().name == name}
        if len(in_folders) > 1:
            raise ConfigError(f"MODEL: several folders are called {name}: {', '.join(in_folders)}")
        if in_folders:
            return next(iter(in_folders.values()))
        there = ", ".join(f"{one.hash[:_SHORT] or 'damaged'} ({one.where})" for one in self.models) or "none"
        valid = f"valid are a folder with an artifact, {SHIPPED}, or the first {SHORTEST_PREFIX} characters of a hash: {there}"
        if not re.fullmatch(f"[0-9a-f]{{{SHORTEST_PREFIX},64}}", name):
            raise ConfigError(f"MODEL: got {name!r}, {valid}")
        matching = {one.hash: one for one in reversed(self.models) if one.hash.startswith(name)}
        if not matching:
            raise ConfigError(f"MODEL: no model {name}, {valid}")
        if len(matching) > 1:
            raise ConfigError(f"MODEL: {name} is the beginning of several: {', '.join(sorted(matching))}")
        (found,) = matching.values()
        return found

    def facts(self, one: Found) -> Facts:
        """What is told about a model in a list."""
        champions = self.registry.champions
        artifact = one.artifact
        return {
            "hash": one.hash,
            "where": one.where,
            "name": None if artifact is None else artifact.name,
            "version": None if artifact is None else artifact.version,
            "shape": None if artifact is None else asdict(artifact.shape),
            "created_at": None if artifact is None else artifact.created_at,
            "created_s": None if artifact is None else artifact.created_s,
            "parent": None if artifact is None else artifact.parent,
            "champion_of": sorted(stream for stream, champion in champions.items() if champion.model == one.hash),
            "previous_of": sorted(stream for stream, champion in champions.items() if champion.previous == one.hash),
            "decisions": {
                stream: msgspec.to_builtins(decision) for (stream, model), decision in self.registry.decisions.items() if model == one.hash
            },
            "problem": one.problem or None,
        }


# --- finding --------------------------------------------------------------------------------------------------------


def shelf(settings: Settings | None, folders: Sequence[Path]) -> Shelf:
    """The models of the topic and of the configuration, and those in folders.

    Args:
        settings: the configuration; None: folders only.
        folders: artifacts, or folders of artifacts.

    Raises:
        ConfigError: a folder holds no artifact.
        TopicError: the models topic does not exist.
        KafkaUnavailableError: no broker answers.
        KafkaRefusedError: not allowed.
    """
    found = Shelf()
    if settings is not None:
        found.registry = asyncio.run(topic.read(settings))
        found.models += [_in_topic(found.registry, model) for model in found.registry.models()]
        found.models += [
            _in_folder(stream.model, f"streams: {stream.name}: model") for stream in settings.streams if stream.model is not None
        ]
    for folder in folders:
        found.models += _below(folder)
    if settings is not None or not folders:
        found.models.append(_in_folder(shipped(), SHIPPED))
    return found


def _in_topic(registry: Registry, model: str) -> Found:
    def content() -> bytes:
        return registry.content(model)

    try:
        artifact = artifacts.from_bytes(content(), f"the model {model[:_SHORT]}")
        if artifact.hash != model:
            raise ArtifactError(f"the model {model[:_SHORT]} is another one: {artifact.hash[:_SHORT]}")
    except ArtifactError as error:
        return Found(model, "topic", None, content, str(error))
    return Found(model, "topic", artifact, content)


def _in_folder(folder: Path, where: str) -> Found:
    def content() -> bytes:
        return artifacts.packed_folder(folder)

    try:
        artifact = artifacts.load(folder)
    except ArtifactError as error:
        return Found("", where, None, content, str(error))
    return Found(artifact.hash, where, artifact, content)


def _below(folder: Path) -> list[Found]:
    candidates = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())] if folder.is_dir() else []
    found = [replace(_in_folder(path, str(path)), folder=path) for path in candidates if (path / artifacts.MANIFEST_FILE).is_file()]
    if not found:
        raise ConfigError(f"--dir {folder}: holds no artifact ({artifacts.MANIFEST_FILE}), nor does a folder in it")
    return found


# --- list and show --------------------------------------------------------------------------------------------------


def list_models(settings: Settings | None, folders: Sequence[Path], *, json_output: bool) -> int:
    """Prints the models that there are. Returns the exit code: 1 where one of them can't be used.

    Raises: as `shelf`.
    """
    found = shelf(settings, folders)
    facts = [found.facts(one) for one in found.models]
    if json_output:
        champions = {stream: msgspec.to_builtins(champion) for stream, champion in found.registry.champions.items()}
        _print(json.dumps({"models": facts, "champions": champions}))
    else:
        _print(*_listed(facts))
        if settings is not None:
            _print("", *(_scored(stream, found.registry, settings) for stream in settings.streams))
    return int(any(one.problem for one in found.models))


def _listed(facts: Sequence[Facts]) -> Iterator[str]:
    rows = [("model", "name", "version", "shape", "age", "parent", "scores", "found in")]
    rows += [
        (
            (one["hash"] or "?")[:_SHORT],
            one["name"] or "-",
            one["version"] or "-",
            "-" if one["shape"] is None else _shape(one["shape"]),
            _age(one["created_s"]),
            (one["parent"] or "-")[:_SHORT],
            ", ".join([*one["champion_of"], *(f"{stream} before" for stream in one["previous_of"])]) or "-",
            one["where"],
        )
        for one in facts
    ]
    yield from _columns(rows)
    for one in facts:
        if one["problem"]:
            yield f"  {(one['hash'] or one['where'])[:64]} can't be used: {one['problem']}"


def _scored(stream: StreamSettings, registry: Registry, settings: Settings) -> str:
    """Which model scores a stream, and why."""
    pin = settings.models.pinned(stream.name)
    champion = registry.champions.get(stream.name)
    if settings.models.timeline is not None:
        text = f"changes as in {settings.models.timeline}"
    elif pin is not None:
        text = f"pinned to {pin}" + ("" if champion is None else f"; its champion {champion.model[:_SHORT]} has no say")
    elif champion is not None:
        why = f": {champion.reason}" if champion.reason else ""
        text = f"{champion.model[:_SHORT]} since {champion.since}, by {champion.by}{why}"
    else:
        text = "the shipped model" if stream.model is None else f"the model in {stream.model}"
    return f"{stream.name}: {text}"


def show(settings: Settings | None, folders: Sequence[Path], model: str, *, json_output: bool) -> int:
    """Prints all that is known of a model. Returns the exit code.

    Args:
        settings: the configuration; None: folders only.
        folders: artifacts, or folders of artifacts.
        model: beginning of a hash, folder, or `shipped`.
        json_output: one JSON object instead of text.

    Raises:
        ConfigError: there is no such model, or several.
        ArtifactError: it can't be used.
        TopicError, KafkaUnavailableError, KafkaRefusedError: as `shelf`.
    """
    found = shelf(settings, folders)
    one = found.chosen(model)
    facts = found.facts(one) | {"manifest": _manifest(one)}
    if json_output:
        _print(json.dumps(facts))
        return 0
    _print(f"{one.hash}  {facts['name']} {facts['version']}, {_shape(facts['shape'])}, found in {one.where}")
    for label, streams in (("scores", facts["champion_of"]), ("scored before", facts["previous_of"])):
        if streams:
            _print(f"  {label}: {', '.join(streams)}")
    _print(*_indented({key: value for key, value in facts["manifest"].items() if key not in _NOT_SHOWN}, 1))
    if facts["decisions"]:
        _print("  decisions", *_indented(facts["decisions"], 2))
    return 0


def _manifest(one: Found) -> Facts:
    """What is written of a model, its parts in the order of their weight for people."""
    artifact = one.artifact
    if artifact is None:
        raise ArtifactError(one.problem)
    said = {key: getattr(artifact, key) for key in ("created_at", "parent", "data", "metrics", "libraries") if getattr(artifact, key)}
    return {
        "hash": artifact.hash,
        "name": artifact.name,
        "version": artifact.version,
        "architecture": artifact.architecture or artifacts.ARCHITECTURE,
        "shape": asdict(artifact.shape),
        "feature_names": None if artifact.feature_names is None else list(artifact.feature_names),
        "weights": sum(tensor.size for tensor in artifact.tensors.values()),
        "row_bytes": Layout(artifact.shape).row_bytes,
        "calibration": asdict(artifact.calibration),
        "calibration_several": None if artifact.several is None else asdict(artifact.several),
        "training": dict(artifact.training),
        **said,
        **artifact.extra,
    }


# --- compare --------------------------------------------------------------------------------------------------------


def compare(
    settings: Settings | None,
    folders: Sequence[Path],
    models: tuple[str, str],
    data: Sequence[Path],
    *,
    format: str | None,  # noqa: A002  the name of the command's option
    json_output: bool,
) -> int:
    """Prints two models side by side and, with data, what each makes of it. Returns the exit code.

    Args:
        settings: the configuration, whose alert policy counts; None: folders and defaults only.
        folders: artifacts, or folders of artifacts.
        models: as `show` takes them.
        data: files and directories, as `anomalyd backtest` takes them.
        format: of files that are neither CSV nor npz.
        json_output: one JSON object instead of a table.

    Raises:
        ConfigError: there is no such model, or several.
        ArtifactError: one can't be used.
        InputFileError: data can't be used by one of them.
        TopicError, KafkaUnavailableError, KafkaRefusedError: as `shelf`.
    """
    found = shelf(settings, folders)
    ones = [found.chosen(name) for name in models]
    manifests = [_manifest(one) for one in ones]
    measured: list[dict[str, float | None]] = [{}, {}]
    if data:
        from anomalyd.evaluation.duel import duel  # noqa: PLC0415  most of what evaluation needs is needed for nothing else here

        measured = duel([one.artifact for one in ones if one.artifact is not None], data, settings, format)
    if json_output:
        both = [{"manifest": manifest, "measures": figures} for manifest, figures in zip(manifests, measured, strict=True)]
        _print(json.dumps(dict(zip(("a", "b"), both, strict=True))))
        return 0
    rows: list[tuple[str, ...]] = [("", "A", "B")]
    flat = [dict(_leaves(manifest)) for manifest in manifests]
    rows += [(key, *(_text(one.get(key)) for one in flat)) for key in dict.fromkeys(key for one in flat for key in one)]
    if data:
        rows += [("", "", ""), *((key, *(_text(one.get(key)) for one in measured)) for key in measured[0])]
    _print(*_columns(rows))
    return 0


# --- promote and roll back ------------------------------------------------------------------------------------------


def promote(settings: Settings, model: str, stream: str, reason: str, *, json_output: bool) -> int:
    """Publishes a model, unless the topic has it, and makes it champion of a stream. Returns the exit code.

    Args:
        settings: the configuration.
        model: as `show` takes it.
        stream: name of the stream.
        reason: for people.
        json_output: one JSON object instead of text.

    Raises:
        ConfigError: there is no such model or stream.
        ArtifactError: it can't be used, or not for this stream.
        DeliveryError: it is not known whether it was written.
        TopicError, KafkaUnavailableError, KafkaRefusedError: as `shelf`.
    """
    configured = _stream(settings, stream)
    one = shelf(settings, []).chosen(model)
    if one.artifact is None:
        raise ArtifactError(one.problem)
    suited(one.artifact, configured)
    base = artifact_of(configured)
    decision = Decision("promoted", reason or "by command")
    champion = asyncio.run(
        topic.publish(settings, Packed(one.hash, one.content()), stream, decision, base=_packed(base, configured), by="promote")
    )
    _tell(settings, stream, champion, json_output=json_output)
    if doubt := _doubt(one.artifact):
        print(doubt, file=sys.stderr)  # noqa: T201  a warning beside the command's result
    return 0


def _doubt(artifact: Artifact) -> str | None:
    """What a manifest says against its model: a worse forecast of what was held back from its training than the shipped model's."""
    errors = artifact.training.get("errors") or {}
    own, shipped_one = (errors.get(name, {}).get("forecast") for name in ("trained", "shipped"))
    if own is None or shipped_one is None or own <= shipped_one:
        return None
    return (
        f"warning: on what was held back of its training data it forecasts worse than the shipped one, {own:g} against {shipped_one:g}; "
        "`anomalyd models rollback` goes back"
    )


def _packed(artifact: Artifact, stream: StreamSettings) -> Packed:
    """The model of a stream's configuration."""
    return Packed(artifact.hash, artifacts.packed_folder(stream.model or shipped()))


def rollback(settings: Settings, stream: str, reason: str, *, json_output: bool) -> int:
    """Makes the champion before the present one champion again. Returns the exit code.

    Args:
        settings: the configuration.
        stream: name of the stream.
        reason: for people.
        json_output: one JSON object instead of text.

    Raises:
        ConfigError: there is no such stream.
        ArtifactError: there is nothing to go back to.
        DeliveryError: it is not known whether it was written.
        TopicError, KafkaUnavailableError, KafkaRefusedError: as `shelf`.
    """
    _stream(settings, stream)
    champion = asyncio.run(topic.roll_back(settings, stream, reason))
    _tell(settings, stream, champion, json_output=json_output)
    return 0


def _stream(settings: Settings, name: str) -> StreamSettings:
    found = next((stream for stream in settings.streams if stream.name == name), None)
    if found is None:
        raise ConfigError(f'--stream: got "{name}", valid are {", ".join(stream.name for stream in settings.streams)}')
    return found


def _tell(settings: Settings, stream: str, champion: Champion, *, json_output: bool) -> None:
    pin = settings.models.pinned(stream)
    if json_output:
        _print(json.dumps({"stream": stream, "pinned": pin, **msgspec.to_builtins(champion)}))
        return
    before = "" if champion.previous is None else f", before it {champion.previous[:_SHORT]}"
    _print(f"{stream}: {champion.model[:_SHORT]} is champion since {champion.since}{before}; running instances go over to it by themselves")
    if pin is not None or settings.models.timeline is not None:
        said = f"models.pin says {pin}" if settings.models.timeline is None else "models.timeline says when models change"
        _print(f"with this configuration it has no effect: {said}")


# --- text -----------------------------------------------------------------------------------------------------------


def _shape(shape: Facts) -> str:
    kind = "joint " if shape["joint"] else ""
    values = f" for {kind}{shape['features']} values" if shape["features"] > 1 or shape["joint"] else ""
    return f"{shape['layers']}x{shape['units']}, code {shape['latent']}{values}"


def _age(created_s: float | None) -> str:
    """How long ago, in the largest unit that fits."""
    if created_s is None:
        return "-"
    age_s = max(0.0, time.time() - created_s)
    size, unit = next(((size, unit) for size, unit in _UNITS if age_s >= size), _UNITS[-1])
    return f"{age_s / size:.0f} {unit}"


def _leaves(tree: Facts, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _indented(tree: Facts, depth: int) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield f"{'  ' * depth}{key}"
            yield from _indented(value, depth + 1)
        elif value not in (None, {}, []):
            yield f"{'  ' * depth}{key}: {_text(value)}"


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _print(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
