"""Alert messages as they leave."""

from anomalyd.alerts.episodes import Policy
from anomalyd.alerts.messages import Message, MessageBuilder, Model
from tests.alerts.columns import Sample, columns, episodes


def alert_messages(series: int = 3) -> list[Message]:
    """Real messages: every series fires, escalates and is resolved."""
    builder = MessageBuilder(stream="hosts", topic="metrics", partition=0, model=Model("pretrained", "1", "ab"))
    samples = [Sample(row, 1000 * step, score) for step, score in enumerate([1.5, 4.0, 0.0]) for row in range(series)]
    transitions = episodes(Policy(resolve_after_samples=1), capacity=series).advance(*columns(samples))
    return [
        builder.build(
            transitions,
            k,
            key=f'load{{host="h{row}"}}',
            name="load",
            labels={"host": f"h{row}"},
            offset=int(transitions.sample[k]),
            detected_at_ms=1_767_268_800_000,
        )
        for k, row in enumerate(transitions.row.tolist())
    ]
