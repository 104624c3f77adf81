"""An explanation as one HTML page."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from anomalyd.alerts.text import number
from anomalyd.evaluation.chart import Chart
from anomalyd.evaluation.explain.told import cells, where
from anomalyd.evaluation.report import Figure, Report, Section, Table, render
from anomalyd.evaluation.sketch import Line, Sketch, bars, courses, places

Facts = dict[str, Any]

_GATES: Final = (("input", "value"), ("forget", "expected"), ("output", "threshold"))


def page(facts: Facts, chart: Chart | None) -> str:
    """The page: figures, the series, the evidence, the window, the memory.

    Args:
        facts: as in `facts`.
        chart: of the series, where its course is known.
    """
    return render(Report(f"Why: {facts['series']}", list(_figures(facts)), list(_sections(facts, chart)), where(facts)))


def _figures(facts: Facts) -> Iterator[Figure]:
    if "sample" in facts:
        sample = facts["sample"]
        yield Figure("score", number(sample["score"]))
        yield Figure("evidence", f"{number(sample['evidence'])} of {number(sample['threshold'])}")
        yield Figure("seen", number(sample["observed"]))
        yield Figure("expected", f"{number(sample['expected'])} ({number(sample['low'])} to {number(sample['high'])})")
        if sample["unusual"]:
            yield Figure("normal data is as strange", sample["unusual"])
    else:
        state = facts["state"]
        yield Figure("newest", number(state["observed"]))
        yield Figure(
            "expected next", f"{number(state['next']['expected'])} ({number(state['next']['low'])} to {number(state['next']['high'])})"
        )
        yield Figure("threshold", f"evidence {number(state['threshold'])}")
    yield Figure("samples learned", f"{facts['learned']['samples']:,}")


def _sections(facts: Facts, chart: Chart | None) -> Iterator[Section]:
    if chart is not None:
        alert = facts["alert"]
        yield Section("The series", [chart], alert["description"] if alert else facts["sample"]["note"])
    if facts.get("channels"):
        yield _evidence(facts)
    if facts["window"] is not None:
        yield _window(facts["window"])
        yield from (_memory(part, facts["network"]) for part in ("encoder", "decoder"))


def _evidence(facts: Facts) -> Section:
    sample, channels = facts["sample"], facts["channels"]
    text = "What each channel adds to the evidence. A score of 1 takes as much as the dashed line says, all together."
    rows = [(channel["name"], number(channel["evidence"]), channel["about"]) for channel in channels]
    if sample["features"]:
        rows += [(feature["name"], f"{100 * feature['share']:.0f} %", "share of this feature") for feature in sample["features"]]
    drawing = bars("Evidence by channel", [(c["name"], c["evidence"]) for c in channels], ("threshold", sample["threshold"]))
    return Section("What the evidence is made of", text=text, table=Table(("channel", "evidence", "says"), rows), sketches=[drawing])


def _window(window: Facts) -> Section:
    steps = window["steps"]
    drawn = [
        courses(
            "Scaled input u (line) and what the network makes of it (dashed)",
            [Line("u", "value", [s["input"][0] for s in steps]), Line("network", "expected", [s["reconstructed"] for s in steps])],
        )
    ]
    valued = [step for step in steps if step.get("value") is not None and "reconstructed_value" in step]
    if len(valued) == len(steps):
        lines = [
            Line("value", "value", [s["value"] for s in steps]),
            Line("network", "expected", [s["reconstructed_value"] for s in steps]),
        ]
        drawn.append(courses("The same in units of the series", lines))
    what = f" of {window['feature']}" if window["feature"] else ""
    text = (
        f"The newest {len(steps)} inputs{what}, the last at 0; the network gives back each when it is the newest. It was {window['about']}."
    )
    return Section("The window that the model saw", text=text, sketches=drawn)


def _memory(part: str, network: Facts) -> Section:
    facts = network[part]
    life, cell = facts["half_life_steps"], facts["cell"]
    rows = [(f"{name} gate", number(facts[f"{name}_gate"]["mean"])) for name, _ in _GATES]
    rows += [(f"half-life in steps, {name}", number(life[name])) for name in ("shortest", "median", "longest")]
    sketches: list[Sketch] = [
        courses(
            "Mean gates over the window: input (line), forget (dashed), output (dotted)",
            [Line(f"{name} gate", style, facts[f"{name}_gate"]["course"]) for name, style in _GATES],
            (0.0, 1.0),
        ),
        bars("Memory half-life of the units, in steps, longest first", _longest(life["units"])),
    ]
    if cell["usual_low"] is not None:
        title = f"Cell state of each unit, in 90 % of {network['usual_of']}"
        sketches.append(places(title, cell["state"], cell["usual_low"], cell["usual_high"]))
    text = f"Cells: {cells(cell, network['usual_of'])}."
    return Section(f"What the {part} remembers", text=text, table=Table(("over the window", "mean"), rows), sketches=sketches)


def _longest(lives: Sequence[float], shown: int = 12) -> list[tuple[str, float]]:
    order = sorted(range(len(lives)), key=lambda unit: -lives[unit])
    return [(f"unit {unit}", lives[unit]) for unit in order[:shown]]
