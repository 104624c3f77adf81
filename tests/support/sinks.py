"""What every sink promises, whatever it writes to.

To hold a sink to it, subclass SinkContract in a test module and give it a fixture `kit`.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from anomalyd.alerts.episodes import Policy
from anomalyd.alerts.messages import Message, MessageBuilder, Model
from tests.alerts.columns import Sample, columns, episodes


@dataclass
class SinkKit:
    """A sink and a way to see what it delivered."""

    deliver: Callable[[Sequence[Message]], Awaitable[None]]
    """Gives alert messages to the sink, in whatever envelope it wants."""
    delivered: Callable[[], Awaitable[list[tuple[bytes, bytes]]]]
    """Key and value of what a consumer can read by now; order matters within a key only."""


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


def by_key(pairs: list[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    """Values of each key, in order."""
    out: dict[bytes, list[bytes]] = {}
    for key, value in pairs:
        out.setdefault(key, []).append(value)
    return out


class SinkContract:
    """Tests that hold for every sink."""

    async def test_everything_is_there_when_deliver_returns(self, kit: SinkKit) -> None:
        messages = alert_messages()

        await kit.deliver(messages)

        assert by_key(await kit.delivered()) == by_key([(m.key, m.value) for m in messages])

    async def test_order_within_an_alert_holds_over_several_deliveries(self, kit: SinkKit) -> None:
        messages = alert_messages(series=20)

        for start in range(0, len(messages), 7):
            await kit.deliver(messages[start : start + 7])

        assert by_key(await kit.delivered()) == by_key([(m.key, m.value) for m in messages])

    async def test_nothing_to_deliver_is_fine(self, kit: SinkKit) -> None:
        await kit.deliver([])

        assert await kit.delivered() == []

    async def test_delivering_again_writes_again(self, kit: SinkKit) -> None:
        """A sink does not guess what was written before: at least once is the caller's promise."""
        message = alert_messages(series=1)[0]

        await kit.deliver([message])
        await kit.deliver([message])

        assert await kit.delivered() == [(message.key, message.value)] * 2
