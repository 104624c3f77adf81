"""Which state row a series has: canonical keys, the choice of series, and the index from series to rows."""

from anomalyd.selection import Selection
from anomalyd.series.aliases import UNKNOWN, AliasTable
from anomalyd.series.entities import Entities
from anomalyd.series.index import EXCLUDED, FRESH, FULL, MAX_KEY_CHARACTERS, NEVER, KeyTooLongError, Released, SeriesIndex
from anomalyd.series.key import parse_key, series_key

__all__ = [
    "EXCLUDED",
    "FRESH",
    "FULL",
    "MAX_KEY_CHARACTERS",
    "NEVER",
    "UNKNOWN",
    "AliasTable",
    "Entities",
    "KeyTooLongError",
    "Released",
    "Selection",
    "SeriesIndex",
    "parse_key",
    "series_key",
]
