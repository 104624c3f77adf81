"""Ablations: each variant differs in what it says, and in nothing else."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from anomalyd.batch import Verdicts
from anomalyd.detector import Artifact, Detector, Pages
from anomalyd.detector import artifact as artifacts
from anomalyd.detector import recipe as R  # noqa: N812 - constants
from anomalyd.detector.detector import shipped
from anomalyd.detector.explain import carried, fields, recent, run
from anomalyd.detector.network import Autoencoder
from anomalyd.detector.step_cpu import GUARDS, JUMP, LENGTH, SUSTAIN, VALUE, A, B
from anomalyd.detector.step_torch import TorchBackend
from anomalyd.errors import InputFileError
from anomalyd.evaluation import evaluate
from anomalyd.evaluation.ablations import VARIANTS, Variant, VariantDetector, models, prepared, table
from anomalyd.evaluation.ablations.kernels import normal_evidence
from anomalyd.evaluation.ablations.networks import GruAutoencoder, RnnAutoencoder, parameters, tensors
from anomalyd.evaluation.measures import paired
from anomalyd.jit import njit
from anomalyd.training import pretrain, trainer
from tests.detector.population import KINDS, assert_same_bits, batch_of, mixed

# The step is compiled for every kernel that is exchanged.
pytestmark = pytest.mark.timeout(900)

SAMPLES, SERIES = 400, 2 * len(KINDS)
CHANNELS = (A, VALUE, JUMP, B)
EVERYTHING = (*CHANNELS, GUARDS, SUSTAIN, LENGTH)
FOLLOWS_THE_SCORE = {"envelope", "rest", "sustained"}
MEMORIES = {f"{channel}_{part}" for channel in "ab" for part in ("mean", "variance", "centre", "weight")}
"""What is learned of a channel only while it is not rare."""
FOLLOWS_THE_NETWORK = {
    "encoder_h",
    "encoder_c",
    "decoder_h",
    "decoder_c",
    "forecast",
    "error",
    "a_mean",
    "a_variance",
    "a_centre",
    "a_weight",
}


@pytest.fixture(scope="module")
def own() -> Artifact:
    return artifacts.load(shipped())


@pytest.fixture(scope="module")
def whole(own: Artifact) -> VariantDetector:
    """Nothing is left out."""
    return VariantDetector(Variant("whole", ""), own)


def streamed(detector: Detector, threshold: NDArray[np.float64] | None = None) -> tuple[Verdicts, Pages]:
    """Verdicts on a population of all kinds of series, one batch, and the rows after it."""
    times, values = mixed(SERIES, SAMPLES, seed=3)
    pages = detector.new_pages(SERIES)
    return detector.step(pages, batch_of(np.tile(np.arange(SERIES), SAMPLES), times.ravel(), values.ravel()), threshold), pages


def without(whole: VariantDetector, *left_out: int) -> tuple[NDArray[np.float64], Pages]:
    """Of the variant that lacks these: its numbers, for the step that all of them have, which takes long to link."""
    numbers = VariantDetector(Variant("some", "", left_out), whole.artifact).threshold
    verdicts, pages = streamed(whole, numbers)
    return verdicts.evidence.reshape(SAMPLES, SERIES), pages


def differing(one: Pages, other: Pages) -> set[str]:
    return {name for name in one.layout.fields if one.bytes_of(name).tobytes() != other.bytes_of(name).tobytes()}


# --- parts of the score -------------------------------------------------------------------------------------------


def test_with_nothing_left_out_it_is_the_detector_bit_for_bit(own: Artifact, whole: VariantDetector) -> None:
    verdicts, pages = streamed(Detector(own, "cpu"))
    same, same_pages = streamed(whole)

    assert_same_bits(verdicts, same)
    assert not differing(pages, same_pages)


@pytest.mark.parametrize("part", EVERYTHING)
def test_what_is_left_out_is_learned_as_ever(whole: VariantDetector, part: int) -> None:
    everything, pages = without(whole)
    evidence, other = without(whole, part)

    assert not np.array_equal(everything, evidence)
    assert differing(pages, other) <= FOLLOWS_THE_SCORE


def test_parts_add_up_to_the_whole(whole: VariantDetector) -> None:
    """Of step 5; what is smoothed in step 6 is left out of all."""
    everything, _ = without(whole, SUSTAIN)
    each = [without(whole, *({*CHANNELS, GUARDS, SUSTAIN} - {part}))[0] for part in (*CHANNELS, GUARDS)]

    np.testing.assert_allclose(sum(each), everything, atol=1e-4)
    assert all((one > 0).any() for one in each)


def test_without_the_term_of_length_evidence_is_the_probability(whole: VariantDetector) -> None:
    others = (VALUE, JUMP, B, GUARDS, SUSTAIN)
    age = 300
    with_term, _ = without(whole, *others)
    evidence, pages = without(whole, *others, LENGTH)
    plain = pages.field("age")[:, 0] == SAMPLES  # no sample was late or repeated, and it did not turn out to be a counter
    a, b = with_term[age, plain], evidence[age, plain]
    term = R.LENGTH_COEFFICIENT * (math.log10(age + R.EVIDENCE_AGE) - 3)
    inside = (a > 0) & (a < R.EVIDENCE_LIMIT) & (b > 0) & (b < R.EVIDENCE_LIMIT)

    assert inside.sum() >= 3
    np.testing.assert_allclose((b - a)[inside], term, atol=1e-3)


# --- exchanged parts ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make"), [("gru", GruAutoencoder), ("rnn", RnnAutoencoder)])
def test_other_cells_are_those_of_torch(own: Artifact, name: str, make: type[Autoencoder]) -> None:
    """The compiled step against the readable one with torch's own layers in it."""
    torch.manual_seed(5)
    network = make(own.shape).eval()
    artifact = replace(own, tensors=tensors(network))
    compiled = VariantDetector(VARIANTS[name], artifact)
    readable = Detector(artifact, "cpu")
    backend = TorchBackend(readable.layout, artifact, "cpu")
    backend._network = network  # noqa: SLF001 - exchanged here alone
    readable._backend = backend  # noqa: SLF001 - likewise
    rng = np.random.default_rng(6)
    value = np.cumsum(rng.standard_normal((60, 4)), axis=0)
    rows = np.arange(4)
    pages, others = compiled.new_pages(4), readable.new_pages(4)

    for t in range(60):
        a, b = (detector.step(page, batch_of(rows, 60_000 * t, value[t])) for detector, page in ((compiled, pages), (readable, others)))
        np.testing.assert_allclose(a.expected, b.expected, rtol=1e-4, atol=1e-4)
    for field in ("encoder_h", "decoder_h", "forecast"):
        np.testing.assert_allclose(pages.field(field).astype(np.float64), others.field(field).astype(np.float64), atol=1e-5)
    assert np.abs(pages.field("encoder_h")).max() > 0.05


def test_networks_have_as_many_units_and_fewer_weights() -> None:
    lstm, gru, rnn = (parameters(make(pretrain.SHAPE)) for make in (Autoencoder, GruAutoencoder, RnnAutoencoder))
    heads = 4 * 32 + 4 + 2 * (32 + 1)

    assert lstm > gru > rnn
    assert (gru - heads, rnn - heads) == (3 * (lstm - heads) / 4, (lstm - heads) / 4)


@pytest.mark.slow
def test_the_window_is_encoded_from_nothing_on_each_sample(own: Artifact) -> None:
    variant = VariantDetector(VARIANTS["re-encoded"], own)
    pages = variant.new_pages(3)
    value = np.cumsum(np.random.default_rng(7).standard_normal((40, 3)), axis=0)
    nothing = np.zeros((2, 1, 1, own.shape.units))

    for t in range(40):
        ages = np.arange(3)[t >= 5 * np.arange(3)]  # series of different ages side by side
        variant.step(pages, batch_of(ages, 60_000 * t, value[t, ages]))
        for i in ages.tolist() if t in (0, 3, 12, 17, 39) else ():
            row = fields(pages.buffer[i], variant.layout)
            inputs = recent(row, variant.layout)
            assert len(inputs) == min(t - 5 * i + 1, R.RECENT)
            course = run(own, inputs, nothing, nothing)
            np.testing.assert_allclose(carried(row, variant.layout, "h"), course.hidden[-1], atol=1e-3)
            np.testing.assert_allclose(row["forecast"], course.forecast[-1], atol=1e-3)


@pytest.mark.slow
def test_re_encoding_changes_the_network_and_its_channel_alone(own: Artifact, whole: VariantDetector) -> None:
    _, pages = without(whole)
    _, other = streamed(VariantDetector(VARIANTS["re-encoded"], own))

    assert differing(pages, other) <= FOLLOWS_THE_NETWORK | FOLLOWS_THE_SCORE | {"histogram", "cluster"}
    channels = [page.field("histogram").reshape(SERIES, 4, R.BINS) for page in (pages, other)]
    np.testing.assert_array_equal(channels[0][:, [VALUE, JUMP, B]], channels[1][:, [VALUE, JUMP, B]])


@pytest.mark.slow
def test_the_other_calibrator_changes_the_evidence_alone(own: Artifact, whole: VariantDetector) -> None:
    everything, pages = without(whole)
    verdicts, other = streamed(VariantDetector(VARIANTS["z-calibrator"], own))

    assert not np.array_equal(everything.ravel(), verdicts.evidence)
    assert differing(pages, other) <= FOLLOWS_THE_SCORE | {"histogram", "cluster"} | MEMORIES


def test_the_other_calibrator_takes_the_logarithm_for_normal() -> None:
    @njit
    def last(state: Any, errors: Any, first: Any) -> float:  # noqa: ANN401 - arrays of several types
        found, cluster = np.float32(0.0), 0
        for i in range(len(errors)):
            found, cluster = normal_evidence(state, errors[i], i, first, cluster)
        return float(found)

    rng = np.random.default_rng(8)
    logs = rng.standard_normal(4000).clip(-2.9, None)
    for deviations in (-1.0, 0.5, 3.0, 5.0):
        errors = np.exp(np.append(logs, logs.mean() + deviations * logs.std())).astype(np.float32)
        for term in (0.0, 0.25):
            wanted = max(-math.log10(0.5 * math.erfc(deviations / math.sqrt(2))) - term, 0.0)
            assert last(np.zeros(R.BINS, np.int16), errors, np.float32(term)) == pytest.approx(wanted, rel=0.01, abs=0.01)


# --- artifacts and the command ------------------------------------------------------------------------------------


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Training and calibration that take seconds, and two variants that share what is compiled above."""
    monkeypatch.setattr(pretrain, "TRAINING_SERIES", (24, 192))
    monkeypatch.setattr(pretrain, "CALM_SERIES", (64, 1000))
    monkeypatch.setattr(trainer, "Plan", partial(trainer.Plan, steps=4, batch=16, stretch=64, window=4))
    two = {name: VARIANTS[name] for name in ("no-lstm", "rnn")}
    monkeypatch.setattr(evaluate, "VARIANTS", two)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_quick")
def test_artifacts_are_kept_and_have_a_line_of_their_own(own: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [VARIANTS["no-lstm"], VARIANTS["rnn"]]
    made = prepared(variants, 0, tmp_path)
    monkeypatch.setattr(models, "_made", lambda *_: pytest.fail("made again"))
    again = prepared(variants, 0, tmp_path)

    assert {name: artifact.hash for name, artifact in made.items()} == {name: artifact.hash for name, artifact in again.items()}
    assert np.array_equal(made["no-lstm"].tensors["code.weight"], own.tensors["code.weight"])
    assert made["rnn"].training["steps"] == 4
    assert made["rnn"].training["parameters"] == parameters(RnnAutoencoder(pretrain.SHAPE))
    assert len({made["no-lstm"].calibration, made["rnn"].calibration, own.calibration}) == 3


@pytest.fixture
def streams(tmp_path: Path) -> Path:
    """Two labelled streams of one value."""
    folder = tmp_path / "streams"
    folder.mkdir()
    for i in range(2):
        value = 10 + np.sin(np.arange(900) / 46) + 0.1 * np.random.default_rng(i).standard_normal(900)
        value[600:606] += 9
        label = np.zeros(900, np.uint8)
        label[600:606] = 1
        np.savez(folder / f"s{i}.npz", timestamp=1_700_000_000 + 300 * np.arange(900), value=value, label=label)
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("_quick")
def test_the_command_measures_every_variant(streams: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.run("folder", streams, None, ablations=True, models=tmp_path / "kept")
    lines = capsys.readouterr().out.splitlines()
    evaluate.run("folder", streams, None, ablations=True, models=tmp_path / "kept", json_output=True, seeds=(0, 1))
    found = json.loads(capsys.readouterr().out)

    assert [title.strip() for title in lines[0].split("|")[2:-1]] == ["VUS-PR", "AUC-PR", "best F1", "told", "false ÷ budget"]
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["anomalyd", "no-lstm", "rnn"]
    assert set(found["compared"]) == {"no-lstm", "rnn"}
    assert found["compared"]["rnn"]["measures"]["event_recall"] == 1.0
    assert found["compared"]["no-lstm"]["difference"]["auc_pr"]["streams"] == 2
    assert found["seeds"] == [0, 1]
    assert found["compared"]["no-lstm"]["spread"]["vus_pr"]["sd"] == 0.0
    # what is not trained is made once
    assert sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "kept").iterdir()) == ["no-lstm", "rnn", "rnn"]


def test_variants_are_for_single_metrics(tmp_path: Path) -> None:
    np.savez(tmp_path / "several.npz", train=np.zeros((300, 3)), test=np.zeros((300, 3)), label=np.zeros(300, np.uint8))

    with pytest.raises(InputFileError, match="3 values; no-lstm is for single metrics"):
        evaluate.run("folder", tmp_path, None, detector="no-lstm")


def test_the_table_says_what_a_variant_lacks() -> None:
    measures = {
        "vus_pr": 0.5,
        "auc_pr": 0.25,
        "best_f1": None,
        "nab_standard": 66.82,
        "event_recall": 0.8,
        "false_episodes_to_budget": 1.254,
    }
    pair = paired([0.5, 0.5, 0.6], [0.4, 0.4, 0.5])
    assert pair is not None

    whole, variant = list(table(("anomalyd", measures), [("no-b", {**measures, "vus_pr": 0.4}, {"vus_pr": pair})]))[2:]

    assert [cell.strip() for cell in whole.split("|")[1:-1]] == ["anomalyd", ".500", ".250", "-", "66.8", "80%", "1.25"]
    assert variant.split("|")[2].strip() == ".400 (-.100 [-.100, -.100])"
