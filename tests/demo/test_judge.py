from anomalyd.demo.fleet import DAY, START_MS, STEP_MS, Incident, Kind
from anomalyd.demo.judge import GRACE, Episode, Judgement, judge


def incident(start: int, end: int, key: str = "a", kind: Kind = "shift") -> Incident:
    return Incident(0, key, kind, START_MS + start * STEP_MS, START_MS + end * STEP_MS, 9.0)


def at(tick: int, key: str = "a") -> Episode:
    return Episode(key, START_MS + tick * STEP_MS)


def judged(incidents: list[Incident], *episodes: Episode, ticks: int = 2000) -> Judgement:
    return judge(incidents, episodes, series=3, ticks=ticks, until_ms=START_MS + (ticks - 1) * STEP_MS)


def test_an_episode_inside_the_window_or_the_grace_detects() -> None:
    window = incident(600, 650)

    assert judged([window], at(600)).findings[0].delay == 0
    assert judged([window], at(649 + GRACE)).findings[0].delay == 49 + GRACE
    for tick in (599, 650 + GRACE):
        judgement = judged([window], at(tick))
        assert judgement.detected == 0
        assert judgement.false == (at(tick),)
    assert judged([window], at(610, "b")).false == (at(610, "b"),)


def test_several_episodes_of_an_incident_are_one_detection_and_none_is_false() -> None:
    judgement = judged([incident(600, 650)], at(640), at(605), at(660))

    assert judgement.detected == 1
    assert judgement.findings[0].delay == 5
    assert judgement.false == ()


def test_what_the_stream_left_unfinished_counts_neither_way() -> None:
    judgement = judged([incident(600, 650), incident(1980, 1990)], at(1985))

    assert [finding.incident.start_ms for finding in judgement.findings] == [START_MS + 600 * STEP_MS]
    assert judgement.false == ()
    assert judged([incident(600, 650)], ticks=650 + GRACE).findings
    assert not judged([incident(600, 650)], ticks=649 + GRACE).findings


def test_the_figures() -> None:
    judgement = judged(
        [incident(600, 610), incident(700, 710, "b", "spike"), incident(800, 820, "c")], at(603), at(704, "b"), at(20), at(30)
    )

    assert judgement.by_kind() == {"spike": (1, 1), "shift": (1, 2)}
    assert judgement.median_delay == 3.5
    assert judgement.series_days == 3 * 2000 / DAY
    assert judgement.false_per_10_series_days == 20 / judgement.series_days
    assert judged([]).median_delay is None
