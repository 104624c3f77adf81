"""Why a record, or a part of one, was not used: a closed set, because reasons are labels of metrics and headers of dead letters."""

from typing import Final

EMPTY: Final = "empty"
"""No value at all: a tombstone or zero bytes."""
MALFORMED: Final = "malformed"
"""Not the format: broken JSON or line protocol, bytes that are not UTF-8, half surrogate pairs."""
TOO_DEEP: Final = "too-deep"
"""Nested beyond any metric."""
TOO_LARGE: Final = "too-large"
"""A series key beyond 4,096 characters, or more new series in one record than the partition may hold."""
NOT_AN_OBJECT: Final = "not-an-object"
"""Valid JSON, but not an object where one belongs."""
NO_NAME: Final = "no-name"
"""The metric's name is missing, empty or not text."""
NO_FIELDS: Final = "no-fields"
"""The metric has no object of fields."""
BAD_LABELS: Final = "bad-labels"
"""Tags that are no object, or a tag value that is a list or an object."""
BAD_TIMESTAMP: Final = "bad-timestamp"
"""Not a time, or one before 1970 or from 2100 on."""
NON_NUMERIC: Final = "non-numeric"
"""A value that is not a number."""
NON_FINITE: Final = "non-finite"
"""NaN, infinite, or beyond the range of 64-bit floating point."""

REASONS: Final = (
    EMPTY,
    MALFORMED,
    TOO_DEEP,
    TOO_LARGE,
    NOT_AN_OBJECT,
    NO_NAME,
    NO_FIELDS,
    BAD_LABELS,
    BAD_TIMESTAMP,
    NON_NUMERIC,
    NON_FINITE,
)


class RejectedError(Exception):
    """What is being parsed cannot be used; `reason` is one of REASONS. Never leaves this package."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
