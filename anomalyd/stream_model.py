"""Which models suit a stream, and the one that its configuration names."""

from anomalyd.detector import Artifact
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.errors import ArtifactError
from anomalyd.settings import StreamSettings


def artifact_of(stream: StreamSettings) -> Artifact:
    """The model that the configuration of a stream names.

    Raises:
        ArtifactError: there is none, or it is not for the stream's features.
    """
    folder = stream.model or shipped()
    try:
        return suited(artifacts.load(folder), stream)
    except ArtifactError as error:
        where = "it comes with the package: reinstall anomalyd" if stream.model is None else f"streams: {stream.name}: model: {folder}"
        raise ArtifactError(f"{error}; {where}" if stream.model is None else f"{where}: {error}") from error


def suited(artifact: Artifact, stream: StreamSettings) -> Artifact:
    """The artifact as it scores a stream. Raises ArtifactError where it is not for the stream's features."""
    names = () if stream.features is None else stream.features.names
    artifact = artifact.for_features(max(1, len(names)))
    if artifact.feature_names and artifact.feature_names != names:
        raise ArtifactError(f"the model {artifact.name} was trained on {_difference(artifact.feature_names, names)}")
    return artifact


def _difference(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    """How the features of a model differ from those of a stream."""
    if sorted(theirs) == sorted(ours):
        return f"the same features in another order: features.names must be {', '.join(theirs)}"
    lacking, more = [name for name in theirs if name not in ours], [name for name in ours if name not in theirs]
    parts = [f"{what} {', '.join(names)}" for what, names in (("features.names lack", lacking), ("it does not know", more)) if names]
    return f"other features: {'; '.join(parts)}"
