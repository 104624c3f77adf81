"""An explanation as text for a terminal."""

from collections.abc import Iterator
from typing import Any, Final

from anomalyd.alerts.text import number

_BAR: Final = 24
_FEATURES: Final = 5


def told(facts: dict[str, Any]) -> str:
    """The facts in words, lines of moderate length."""
    return "\n".join(_lines(facts))


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    yield f"{facts['series']}  {where(facts)}"
    if facts.get("note"):
        yield f"  {facts['note']}"
    yield from _sample(facts) if "sample" in facts else _state(facts)
    if facts.get("channels"):
        yield ""
        yield from _channels(facts)
    yield ""
    yield from _learned(facts["learned"])
    if facts["window"] is not None:
        yield ""
        yield from _window(facts["window"])
        yield ""
        yield from _network(facts["network"])


def where(facts: dict[str, Any]) -> str:
    """Where the explained state or sample is."""
    source = facts["source"]
    if "sample" in facts:
        return f"{facts['sample']['time']}, row {facts['sample']['row']} of {source['file']}"
    return f"as of {facts['state']['time']}, in {source['topic']}/{source['partition']}, input up to offset {source['learned_up_to']:,}"


def _sample(facts: dict[str, Any]) -> Iterator[str]:
    sample, alert = facts["sample"], facts["alert"]
    what = f"{sample['features'][0]['name']} " if sample["features"] else ""
    unit = "/s" if "counter" in sample["flags"] else ""
    seen, expected = f"{number(sample['observed'])}{unit}", f"{number(sample['expected'])}{unit}"
    yield f"  seen       {what}{seen}, where {expected} was expected ({number(sample['low'])} to {number(sample['high'])}{unit})"
    unusual = f"; normal data is as strange {sample['unusual']}" if sample["unusual"] else ""
    evidence = f"evidence {number(sample['evidence'])}, the threshold is {number(sample['threshold'])}"
    yield f"  score      {number(sample['score'])}: {evidence}{unusual}"
    if sample["note"]:
        yield f"  note       {sample['note']}"
    yield f"  alert      {_alert(sample, alert)}"
    if sample["features"]:
        for feature in sample["features"][:_FEATURES]:
            share = f"{100 * feature['share']:.0f} %"
            seen, expected = _number(feature["observed"]) or "missing", _number(feature["expected"]) or "nothing"
            yield f"  {share:>5}      {feature['name']}: {seen}, expected {expected}"


def _alert(sample: dict[str, Any], alert: dict[str, Any] | None) -> str:
    if alert is not None:
        return f"{alert['severity']} since {alert['starts_at']}"
    if sample["score"] < 1:
        return "none: the score is below 1"
    return "none: the policy (direction, deviation, duration, mutes) or a higher score not long ago keeps one from opening"


def _state(facts: dict[str, Any]) -> Iterator[str]:
    state = facts["state"]
    unit = "/s" if facts["learned"]["counter"] else ""
    expected = state["next"]
    yield f"  newest     {number(state['observed'])}{unit}"
    yield f"  expected   {number(expected['expected'])}{unit} next ({number(expected['low'])} to {number(expected['high'])}{unit})"
    yield f"  threshold  evidence {number(state['threshold'])} is a score of 1"
    peak = f", peak score {number(state['peak_score'])}" if state["alert_since"] else ""
    yield f"  alert      {'open since ' + state['alert_since'] + peak if state['alert_since'] else 'none open'}"


def _channels(facts: dict[str, Any]) -> Iterator[str]:
    yield "evidence, channel by channel"
    highest = max(1e-9, *(channel["evidence"] for channel in facts["channels"]))
    for channel in facts["channels"]:
        bar = "█" * round(_BAR * channel["evidence"] / highest) if channel["evidence"] > 0 else ""
        about = channel["about"] if channel["evidence"] > 0 else ""
        yield f"  {channel['name']:<9}  {channel['evidence']:>5.2f}  {bar:<{_BAR}}  {about}".rstrip()
    total, threshold = facts["sample"]["evidence"], facts["sample"]["threshold"]
    yield f"  together   {total:>5.2f}  of {threshold:.2f} that make a score of 1"


def _learned(learned: dict[str, Any]) -> Iterator[str]:
    unit = "/s" if learned["counter"] else ""
    of = f" of {learned['feature']}" if learned["feature"] else ""
    yield f"what is known{of or ' of the series'}, after {learned['samples']:,} samples, usually one in {number(learned['step_s'])} s"
    level = (
        f"mean {number(learned['mean'])}{unit}, deviation {number(learned['deviation'])}, usual change {number(learned['usual_change'])}"
    )
    yield f"  level      {level}, unchanged {100 * learned['unchanged']:.0f} % of the time"
    yield f"  range      {number(learned['range'][0])} to {number(learned['range'][1])}{unit}, slowly narrowing where it is not reached"
    if patterns := learned.get("patterns"):
        yield f"  patterns   {patterns['A']} of 32 kept of the network's view (A), {patterns['B']} of 32 of value, step and level (B)"


def _window(window: dict[str, Any]) -> Iterator[str]:
    feature = f" of {window['feature']}" if window["feature"] else ""
    yield f"the newest {len(window['steps'])} inputs{feature} and what the network makes of each when it is the newest ({window['values']})"
    timed = "time" in window["steps"][0]
    yield f"  {'time' if timed else 'step':<24}  {'value':>9}  {'network':>9}  {'u':>6}  {'network':>7}  {'d':>6}"
    for step in window["steps"]:
        moment = step["time"] if timed else str(step["step"])
        values = f"{_number(step.get('value')):>9}  {_number(step.get('reconstructed_value')):>9}"
        jump = f"{step['input'][1]:>6.2f}" if len(step["input"]) > 1 else ""
        yield f"  {moment:<24}  {values}  {step['input'][0]:>6.2f}  {step['reconstructed']:>7.2f}  {jump}".rstrip()


def _network(network: dict[str, Any]) -> Iterator[str]:
    yield "what the cells remember, over this window"
    for part in ("encoder", "decoder"):
        facts, life = network[part], network[part]["half_life_steps"]
        gates = ", ".join(f"{name} {facts[name + '_gate']['mean']:.2f}" for name in ("input", "forget", "output"))
        yield f"  {part}    mean gates: {gates}; cells: {cells(facts['cell'], network['usual_of'])}"
        lives = f"{life['shortest']:.1f} to {life['longest']:.1f} steps, half of the units {life['median']:.1f} or more"
        yield f"             a cell's memory halves in {lives}"
    yield f"  (network {network['about']})"


def cells(cell: dict[str, Any], usual_of: str | None) -> str:
    """How many cells are outside of what is usual."""
    if cell["outside"] is None:
        return "too little to say what is usual"
    return f"{len(cell['outside'])} of {len(cell['state'])} outside of 90 % of {usual_of}"


def _number(value: float | None) -> str:
    return "" if value is None else number(value)
