import itertools
import json

import numpy as np
import pytest
from numpy.typing import NDArray

from anomalyd.demo.fleet import BLOCK, DAY, DEMONSTRATED, KINDS, REST, START_MS, STEP_MS, STRENGTHS, WARM_UP, Fleet, Incident


def run(fleet: Fleet, ticks: int, block: int = BLOCK) -> NDArray[np.float64]:
    return np.concatenate([fleet.block(min(block, ticks - done)).value for done in range(0, ticks, block)])


def window(incident: Incident) -> slice:
    return slice((incident.start_ms - START_MS) // STEP_MS, (incident.end_ms - START_MS) // STEP_MS)


def test_the_seed_alone_decides_and_not_the_pace() -> None:
    one, other, third = Fleet(60, seed=3), Fleet(60, seed=3), Fleet(60, seed=4)

    values = run(one, 1200), run(other, 1200, block=7), run(third, 1200)

    np.testing.assert_array_equal(values[0], values[1])
    assert one.incidents == other.incidents
    assert not np.array_equal(values[0], values[2])
    assert one.incidents != third.incidents


def test_forty_five_seconds_of_the_default_fleet_hold_several_incidents_of_every_kind() -> None:
    fleet = Fleet(200, seed=0)

    run(fleet, 2 * DAY)

    kinds = [incident.kind for incident in fleet.incidents]
    assert all(kinds.count(kind) >= 4 for kind in DEMONSTRATED)
    starts = [incident.start_ms for incident in fleet.incidents]
    assert starts == sorted(starts)
    assert starts[0] >= START_MS + WARM_UP * STEP_MS
    assert max(np.diff(starts)) <= 90 * STEP_MS


def test_a_series_is_left_alone_after_an_incident() -> None:
    fleet = Fleet(10, seed=1)

    run(fleet, 6 * DAY)

    assert len(fleet.incidents) > 10
    for series in range(10):
        own = [incident for incident in fleet.incidents if incident.series == series]
        assert all(later.start_ms - earlier.end_ms >= REST * STEP_MS for earlier, later in itertools.pairwise(own))


def test_incidents_change_the_samples_inside_their_window_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    disturbed = Fleet(100, seed=5, kinds=KINDS)
    seen = run(disturbed, 2 * DAY)
    calm = Fleet(100, seed=5, kinds=KINDS)
    monkeypatch.setattr(calm, "_start_incidents", lambda until: None)
    normal = run(calm, 2 * DAY)

    assert disturbed.incidents
    for incident in disturbed.incidents:
        if incident.end_ms > START_MS + 2 * DAY * STEP_MS:
            continue  # it goes on after the last sample
        profile = disturbed.profiles[incident.series]
        with_it, without = seen[:, incident.series].copy(), normal[:, incident.series].copy()
        for other in disturbed.incidents:
            if other.series == incident.series and other is not incident and not profile.counter:
                with_it[window(other)] = without[window(other)]
        if profile.counter:  # a total keeps what an incident has added
            with_it, without = np.diff(with_it), np.diff(without)
            during = slice(window(incident).start - 1, window(incident).stop - 1)
        else:
            during = window(incident)
        assert not np.allclose(with_it[during], without[during], rtol=1e-6), incident
        if not profile.counter:
            np.testing.assert_allclose(np.delete(with_it, np.r_[during]), np.delete(without, np.r_[during]), rtol=1e-9)
        if incident.kind == "flatline":
            assert np.ptp(with_it[during]) == 0
        assert STRENGTHS[incident.kind].size[0] <= abs(incident.size) <= STRENGTHS[incident.kind].size[1]


def test_values_are_what_their_profile_says() -> None:
    fleet = Fleet(200, seed=2)

    values = run(fleet, DAY)

    assert np.isfinite(values).all()
    assert (values >= 0).all()
    for s, profile in enumerate(fleet.profiles):
        if profile.counter:
            assert (np.diff(values[:, s]) >= 0).all()
        elif profile.quantum:
            np.testing.assert_allclose(values[:, s] / profile.quantum, np.rint(values[:, s] / profile.quantum), rtol=1e-9)
        if profile.field == "replicas":
            assert np.ptp(values[:, s]) == 0
    level = np.median(values[:, [not (profile.counter or profile.quantum) for profile in fleet.profiles]], axis=0)
    assert np.ptp(np.log10(level)) > 8  # decades


@pytest.mark.parametrize("series", [1, 5, 7, 200])
def test_records_hold_every_series_once_under_the_key_of_its_alerts(series: int) -> None:
    fleet = Fleet(series, seed=0)
    block = fleet.block(3)

    records = fleet.records(block, 2)

    seen: dict[str, float] = {}
    for key, text in records:
        record = json.loads(text)
        assert record["tags"] == {"host": key}
        assert record["timestamp"] * 1000 == block.time_ms[2]
        seen |= {f'{record["name"]}.{field}{{host="{key}"}}': value for field, value in record["fields"].items()}
    assert list(seen) == fleet.keys
    assert len(fleet) == series
    np.testing.assert_allclose(list(seen.values()), block.value[2], rtol=1e-7)
