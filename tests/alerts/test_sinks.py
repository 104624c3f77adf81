"""The sink in memory keeps the promises that the real one makes."""

import pytest

from anomalyd.alerts.messages import Message
from anomalyd.alerts.sinks import MemorySink, Sink
from anomalyd.errors import DeliveryError
from tests.support.sinks import SinkContract, SinkKit, alert_messages


class TestMemorySink(SinkContract):
    """The promises of every sink."""

    @pytest.fixture
    def kit(self) -> SinkKit:
        memory = MemorySink[Message]()
        sink: Sink[Message] = memory

        async def delivered() -> list[tuple[bytes, bytes]]:
            return [(m.key, m.value) for m in memory.messages]

        return SinkKit(sink.deliver, delivered)


async def test_a_rehearsed_outage_writes_nothing_and_passes() -> None:
    sink, messages = MemorySink[Message](failures=2), alert_messages()

    for _ in range(2):
        with pytest.raises(DeliveryError):
            await sink.deliver(messages)
    lost = list(sink.messages)
    await sink.deliver(messages)

    assert lost == []
    assert sink.messages == messages
