"""Which time series the scores of a sample become."""

import numpy as np

from anomalyd.batch import Points
from anomalyd.remote.series import Names, Requests
from tests.remote.test_protobuf import read


def points(times: list[int], key: str = 'cpu.usage{host="web-1"}', features: int = 1, **columns: float) -> Points:
    n = len(times)
    wide = {name: np.full((n, features), columns.get(name, 1.0)) for name in ("expected", "low", "high")}
    names = tuple("abcdef"[:features]) if features > 1 else ()
    return Points("hosts", [key] * n, names, np.array(times, np.int64), np.full(n, columns.get("score", 0.5)), **wide)


def test_a_sample_is_four_values_with_the_labels_of_its_series() -> None:
    made = Requests(Names(), {"cluster": "eu"}).make([points([1000, 2000], score=0.5, expected=3, low=2, high=4)])

    common = {"for": "cpu.usage", "stream": "hosts", "host": "web-1", "cluster": "eu"}
    assert read(made.body) == [
        (common | {"__name__": name}, [(1000, value), (2000, value)])
        for name, value in [("anomaly_score", 0.5), ("yhat", 3), ("yhat_lower", 2), ("yhat_upper", 4)]
    ]
    assert (made.samples, made.stale) == (2, 0)


def test_what_is_not_newer_than_what_was_sent_is_left_out() -> None:
    requests = Requests(Names(), {})
    requests.make([points([1000, 2000])])
    made = requests.make([points([2000, 1500, 3000]), points([500], key="other")])

    assert (made.samples, made.stale) == (2, 2)
    assert {samples[0][0] for _, samples in read(made.body)} == {3000, 500}


def test_what_is_not_known_is_no_value() -> None:
    made = Requests(Names(score="s"), {}).make([points([1000], expected=float("nan"), low=float("nan"), high=float("inf"))])

    assert [labels["__name__"] for labels, _ in read(made.body)] == ["s"]


def test_features_are_told_apart_by_a_label_and_have_one_score() -> None:
    made = read(Requests(Names(), {}).make([points([1000], features=2)]).body)

    assert [(labels["__name__"], labels.get("feature")) for labels, _ in made] == [
        ("anomaly_score", None),
        *((name, feature) for name in ("yhat", "yhat_lower", "yhat_upper") for feature in "ab"),
    ]


def test_labels_of_a_series_give_way_to_ours() -> None:
    (first, *_) = read(Requests(Names(), {}).make([points([1000], key='m{for="x",stream="y"}')]).body)

    assert first[0] == {"__name__": "anomaly_score", "for": "m", "stream": "hosts", "exported_for": "x", "exported_stream": "y"}
