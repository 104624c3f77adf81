"""The exact reading of JSON records: what the compiled scanners are held to, and what reads everything that they decline."""

import json
from collections.abc import Callable
from typing import Any, Final

import msgspec

from anomalyd.formats.rejection import BAD_LABELS, EMPTY, MALFORMED, NO_NAME, NON_FINITE, NON_NUMERIC, TOO_DEEP, RejectedError

_decode: Final[Callable[[bytes], Any]] = msgspec.json.Decoder().decode
# Longer integers mean nothing as a metric, and converting them takes quadratic time.
_LONGEST_INTEGER: Final = 25


def load(value: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """The JSON value of a record. NaN and Infinity, which some producers write, are read as such, so that only their sample is lost.

    Raises:
        RejectedError: empty, malformed or too deep.
    """
    if not value:
        raise RejectedError(EMPTY)
    try:
        return _decode(value)
    except RecursionError:
        raise RejectedError(TOO_DEEP) from None
    except (msgspec.MsgspecError, ValueError) as error:
        if b"NaN" in value or b"Infinity" in value or "out of range" in str(error):
            return _load_non_finite(value)
        raise RejectedError(MALFORMED) from None


def _load_non_finite(value: bytes) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(value.decode(), parse_int=lambda text: int(text) if len(text) <= _LONGEST_INTEGER else float(text))
    except RecursionError:
        raise RejectedError(TOO_DEEP) from None
    except ValueError:
        raise RejectedError(MALFORMED) from None


def name_of(raw: object) -> str:
    """A metric's name.

    Raises:
        RejectedError: missing, empty or not text.
    """
    if isinstance(raw, str) and raw:
        return raw
    raise RejectedError(NO_NAME)


def labels_of(raw: object) -> dict[str, str]:
    """Labels out of an object of tags: numbers and booleans as JSON writes them, null like a missing label.

    Raises:
        RejectedError: not an object, or a list or object as a value.
    """
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise RejectedError(BAD_LABELS)
    return {label: value if isinstance(value, str) else _label_text(value) for label, value in raw.items()}


def _label_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        try:
            return str(value)
        except ValueError:  # an integer of thousands of digits
            raise RejectedError(BAD_LABELS) from None
    raise RejectedError(BAD_LABELS)


def number_of(raw: object) -> float:
    """A finite value; booleans count as 0 and 1.

    Raises:
        RejectedError: not a number, or not finite.
    """
    if not isinstance(raw, int | float):
        raise RejectedError(NON_NUMERIC)
    try:
        number = float(raw)
    except OverflowError:
        raise RejectedError(NON_FINITE) from None
    if number - number != 0.0:
        raise RejectedError(NON_FINITE)
    return number
