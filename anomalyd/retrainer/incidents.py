"""Times that nothing is to be learned from: what alerts told, and what people wrote down."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from anomalyd.alerts.mutes import Mute, Mutes

_MINUTE_MS: Final = 60_000
_STILL: Final = int(np.iinfo(np.int64).max)
_UNHEARD_MS: Final = 7 * 86_400_000
"""An open alert is told of at least once a day; of one that is not for so long nobody will say that it is over."""


class _Series(msgspec.Struct):
    key: str


class _Told(msgspec.Struct):
    """What is read of an alert message."""

    alert_id: str
    stream: str
    status: str
    kind: str
    series: _Series
    event_time: str
    starts_at: str
    ends_at: str | None = None


class Incidents:
    """Spans of event time by series, of one stream.

    Args:
        stream: whose alerts.
        mutes: further times, as alert policies have them: labelled incidents and maintenance.
    """

    def __init__(self, stream: str, mutes: Sequence[Mute] = ()) -> None:
        self._stream = stream
        self._mutes = Mutes(mutes)
        self._some_mutes = bool(mutes)
        self._spans: dict[str, dict[str, tuple[int, int, int]]] = {}  # by series and alert: beginning, end, event time of what said so

    def take(self, message: bytes | None) -> bool:
        """Takes in a record of the alerts topic; returns whether it was an alert that can be read, of whatever stream."""
        try:
            told = _DECODER.decode(message or b"")
            begin, end, heard = _ms(told.starts_at), _STILL if told.ends_at is None else _ms(told.ends_at), _ms(told.event_time)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return False
        if told.stream == self._stream and told.kind == "anomaly":
            spans = self._spans.setdefault(told.series.key, {})
            # Messages of an alert may come from two partitions, if the topic has grown: what is older says nothing new.
            if told.alert_id not in spans or spans[told.alert_id][2] <= heard:
                spans[told.alert_id] = (begin, end, heard)
        return True

    def forget(self, before_ms: int, now_ms: int) -> None:
        """Lets go of what was over before that, and ends what nobody has spoken of for a week, in event time."""
        for key, spans in list(self._spans.items()):
            heard = {
                alert: (begin, said if end == _STILL and said < now_ms - _UNHEARD_MS else end, said)
                for alert, (begin, end, said) in spans.items()
            }
            left = {alert: span for alert, span in heard.items() if span[1] >= before_ms}
            if left:
                self._spans[key] = left
            else:
                del self._spans[key]

    @property
    def spans(self) -> list[tuple[str, str, int, int, int]]:
        """All of them, as JSON can hold them: series, alert, beginning, end, event time of the message that said so."""
        return [(key, alert, *span) for key, spans in self._spans.items() for alert, span in spans.items()]

    def resume(self, spans: Sequence[Sequence[Any]]) -> None:
        """Takes up what `spans` said, where nothing newer is known."""
        for key, alert, begin, end, heard in spans:
            self._spans.setdefault(str(key), {}).setdefault(str(alert), (int(begin), int(end), int(heard)))

    def __len__(self) -> int:
        return sum(map(len, self._spans.values()))

    def inside(self, key: str, time_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which moments (n,) of a series lie inside of one."""
        inside = np.zeros(len(time_ms), np.bool_)
        for begin, end, _ in self._spans.get(key, {}).values():
            inside |= (time_ms >= begin) & (time_ms <= end)
        if self._some_mutes:
            minutes, where = np.unique(time_ms // _MINUTE_MS, return_inverse=True)
            inside |= np.array([self._mutes.hold(key, minute * _MINUTE_MS) for minute in minutes.tolist()], np.bool_)[where]
        return inside


def _ms(moment: str) -> int:
    return int(np.datetime64(moment.removesuffix("Z"), "ms").astype(np.int64))


_DECODER: Final = msgspec.json.Decoder(_Told)
