"""Wire formats: record values to columns of samples, one module per format, one registry."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from anomalyd.errors import ConfigError
from anomalyd.formats import influx, plain, telegraf
from anomalyd.formats.decoder import BulkDecoder, Decoded, Decoder, Scan
from anomalyd.formats.parsed import Parse
from anomalyd.formats.rejection import REASONS
from anomalyd.formats.times import UNITS, TimestampUnit

__all__ = ["FORMATS", "REASONS", "UNITS", "Decoded", "Decoder", "FormatOptions", "TimestampUnit", "make_decoder"]

FORMATS: Final[Mapping[str, tuple[Parse, Scan]]] = MappingProxyType(
    {
        "plain-json": (plain.parse, plain.scan),
        "telegraf-json": (telegraf.parse, telegraf.scan),
        "influx": (influx.parse, influx.scan),
    }
)
"""Format name, as in `streams[].format`, to its exact reading and its scanner."""


@dataclass(frozen=True, slots=True)
class FormatOptions:
    """How a stream's records are to be read."""

    timestamp_unit: TimestampUnit = "auto"
    """Unit of numeric timestamps; auto: by magnitude, number by number."""


def make_decoder(name: str, options: FormatOptions = FormatOptions()) -> Decoder:
    """The decoder of a format.

    Raises:
        ConfigError: there is no such format or timestamp unit.
    """
    if name not in FORMATS:
        raise ConfigError(f"format: got {name!r}, valid are {', '.join(FORMATS)}")
    if options.timestamp_unit not in UNITS:
        raise ConfigError(f"timestamp_unit: got {options.timestamp_unit!r}, valid are {', '.join(UNITS)}")
    parse, scan = FORMATS[name]
    return BulkDecoder(parse, scan, options.timestamp_unit)
