"""Single values to samples of entities: what was measured of an entity at one time is one sample.

What an entity has sent so far is kept in its state row, so it is written down, restored and replayed with it. What comes out follows from
the order of the entity's values and their event times alone, never from how they are cut into batches:

- A value fills its place in the sample of its time. Of several values for one place the last one counts.
- The sample is whole as soon as every feature that is waited for is there; else when a value of a later time arrives. A feature is waited
  for that came with one of the last 8 samples. One that came too late for a sample that went without it is waited for in the next 255.
  The first sample of an entity waits for all features, because nothing is known yet. Places that nothing has filled are NaN.
- A value for an earlier time than the sample that is being filled, or for one that is whole, is too late, and is not used. Eight earlier
  times in a row say that the clock was set back: what was being filled is given up, and the last of them is the present. The detector has
  the same rule for the samples that it sees. So the first value of each time from before the newest sample that was whole reaches it, as a
  sample that lacks all other features, and is late there.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import SampleBatch
from anomalyd.detector.pages import Pages
from anomalyd.detector.recipe import LATE_RUN
from anomalyd.jit import njit

WAITING: Final = 8
"""Samples for which a feature is waited for once it came with one."""
MISSED: Final = 255
"""The same once it came too late for a sample that went without it: a feature that comes seldom, and last, must not be lost each time."""

NOTHING: Final = 0
FIRST: Final = 1
FILLING: Final = 2
WHOLE: Final = 3
"""In the field `stage`: no value yet; the first sample is being filled; a later one is; the newest is whole."""

_ROOM_BYTES: Final = 1 << 20
"""Of values in samples that come out at once."""


class Assembled(NamedTuple):
    """Samples that came of some values; n samples."""

    batch: SampleBatch
    """Attributed to the records of the values that completed them."""
    origin: NDArray[np.int64]
    """Index of the value that completed each sample, ascending, (n,)."""
    stop: int
    """Behind the values that were looked at."""
    late: int
    """Values too late, but for those that are among the samples."""
    repeated: int
    """Values that were there already."""


class Assembler:
    """Assembles the samples of one partition.

    Args:
        pages: the rows of its entities, laid out for several features.
    """

    def __init__(self, pages: Pages) -> None:
        layout = pages.layout
        self._pages = pages
        self._features = layout.shape.features
        self._places = (
            layout.row_bytes,
            layout["awaited"].first,
            *(layout[name].first for name in ("filling", "whole_time", "late_time", "filled", "stage", "late_times")),
        )

    def samples(self, values: SampleBatch) -> Iterator[Assembled]:
        """What comes of these values, part by part; every value is looked at once, when its part is asked for.

        Args:
            values: with `feature`.

        Raises:
            ValueError: they are samples already.
        """
        flat = self._pages.buffer.reshape(-1)
        memory = tuple(flat.view(kind) for kind in (np.uint8, np.float64, np.int64, np.int32))
        room = max(2, min(2 * len(values), _ROOM_BYTES // (8 * self._features)))
        if values.feature is None:
            raise ValueError("values of entities say which feature each is")
        start = 0
        while start < len(values):
            origin, time_ms = np.empty(room, np.int64), np.empty(room, np.int64)
            value = np.empty((room, self._features))
            start, count, late, repeated = _run(
                memory,
                self._places,
                self._features,
                values.row,
                values.feature,
                values.time_ms,
                values.value[:, 0],
                start,
                origin,
                time_ms,
                value,
            )
            origin = origin[:count].copy()
            batch = SampleBatch(values.row[origin], time_ms[:count].copy(), value[:count].copy(), values.record[origin])
            yield Assembled(batch, origin, start, late, repeated)


@njit
def _run(
    memory: tuple[NDArray[Any], ...],
    places: tuple[int, ...],
    features: int,
    rows: NDArray[np.int32],
    feature: NDArray[np.int32],
    times: NDArray[np.int64],
    values: NDArray[np.float64],
    start: int,
    origin: NDArray[np.int64],
    sample_time: NDArray[np.int64],
    sample: NDArray[np.float64],
) -> tuple[int, int, int, int]:
    """See `Assembler.samples`; the last three receive samples. Returns where it stopped and how many samples, late and repeated values."""
    u1, f8, i8, i4 = memory
    row_bytes, awaited_at, filling_at, whole_at, late_at, filled_at, stage_at, run_at = places
    count = late = repeated = 0
    i = start
    while i < len(rows) and count + 2 <= len(origin):
        at = np.int64(rows[i]) * row_bytes
        a8, a4 = at // 8, at // 4
        k, now, x = feature[i], times[i], values[i]
        filled = f8[a8 + filled_at : a8 + filled_at + features]
        awaited = u1[at + awaited_at : at + awaited_at + features]
        stage, time = i4[a4 + stage_at], i8[a8 + filling_at]

        if stage != NOTHING and now < time:
            another = i4[a4 + run_at] == 0 or now != i8[a8 + late_at]
            if another:
                i4[a4 + run_at] += 1
                i8[a8 + late_at] = now
            if not another or i4[a4 + run_at] % LATE_RUN:
                # Not a second time: the detector is about to see the sample that makes its count full.
                if another and stage != FIRST and now < i8[a8 + whole_at] and i4[a4 + run_at] < LATE_RUN:
                    sample[count] = np.nan
                    sample[count, k] = x
                    sample_time[count] = now
                    origin[count] = i
                    count += 1
                else:
                    late += 1
                i += 1
                continue
        elif stage == WHOLE and now == time:
            if filled[k] == x:
                repeated += 1
            else:
                late += 1
                if np.isnan(filled[k]):
                    awaited[k] = MISSED
            i += 1
            continue
        elif stage in (FIRST, FILLING) and now > time:
            count = _conclude(filled, awaited, time, i, origin, sample_time, sample, count)
            i8[a8 + whole_at] = time
            i4[a4 + run_at] = 0
            stage = WHOLE

        if stage in (NOTHING, WHOLE) or now != time:
            # What was being filled is given up where the clock was set back.
            filled[:] = np.nan
            i8[a8 + filling_at] = now
            stage = FIRST if stage in (NOTHING, FIRST) else FILLING
        filled[k] = x
        whole = True
        for j in range(features):
            if np.isnan(filled[j]) and (stage == FIRST or awaited[j] > 0):
                whole = False
                break
        if whole:
            count = _conclude(filled, awaited, now, i, origin, sample_time, sample, count)
            i8[a8 + whole_at] = now
            i4[a4 + run_at] = 0
            stage = WHOLE
        i4[a4 + stage_at] = stage
        i += 1
    return i, count, late, repeated


@njit(forceinline=True)
def _conclude(
    filled: NDArray[np.float64],
    awaited: NDArray[np.uint8],
    time: int,
    i: int,
    origin: NDArray[np.int64],
    sample_time: NDArray[np.int64],
    sample: NDArray[np.float64],
    count: int,
) -> int:
    """Writes a sample that is whole with value `i`, and remembers which features it had; returns how many samples there are now."""
    origin[count], sample_time[count] = i, time
    for j in range(len(filled)):
        sample[count, j] = filled[j]
        left = awaited[j] - 1 if awaited[j] > 0 else 0
        awaited[j] = left if np.isnan(filled[j]) else max(left, WAITING)
    return count + 1
