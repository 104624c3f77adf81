"""What the compiled scanners share: joining records, and reading strings, numbers and times eight bytes at a time.

A position is an index into the joined bytes. Every reader takes the position where its thing begins and returns the position behind it, or
DECLINED: not what is read here, be it wrong or only rare. Records are joined with NUL bytes between and behind them. NUL is not legal
anywhere in the formats and no reader steps over one, so none leaves its record or the buffer, without ever asking where either ends.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.formats.decoder import Scanned
from anomalyd.formats.times import BELOW_MS, BELOW_NS, BELOW_US, END_MS, UNITS, TimestampUnit
from anomalyd.intrinsics import byte_at, count_ones, float_of_bits, leading_zeros, load_word, multiply_high, signed, trailing_zeros, word_at
from anomalyd.jit import njit

DECLINED: Final = -1

Address = int
"""Where an array begins, see `address_of`: no reader takes arrays."""

# A word, and a time of fixed shape, may be read at any index of a record.
_PADDING: Final = bytes(32)

_U = np.uint64
_ZERO: Final = _U(0)
_ONE: Final = _U(1)
_THREE: Final = _U(3)
_NINE: Final = _U(9)
_TEN: Final = _U(10)
_ONES: Final = _U(0x0101010101010101)
_HIGHS: Final = _U(0x8080808080808080)
_LOWS: Final = _U(0x7F7F7F7F7F7F7F7F)
_QUOTES: Final = _U(0x2222222222222222)
_BACKSLASHES: Final = _U(0x5C5C5C5C5C5C5C5C)
_OPENING: Final = _U(0x7B7B7B7B7B7B7B7B)
_CLOSING: Final = _U(0x7D7D7D7D7D7D7D7D)
SPACES: Final = _U(0x2020202020202020)
BEHIND_SPACES: Final = _U(0x2121212121212121)
EQUALS: Final = _U(0x3D3D3D3D3D3D3D3D)
COMMAS: Final = _U(0x2C2C2C2C2C2C2C2C)

QUOTE: Final = ord('"')
BACKSLASH: Final = ord("\\")
COMMA: Final = ord(",")
COLON: Final = ord(":")
OPEN: Final = ord("{")
CLOSE: Final = ord("}")
MINUS: Final = ord("-")
PLUS: Final = ord("+")
POINT: Final = ord(".")
DIGIT_0: Final = ord("0")
LETTER_E: Final = ord("e")
LETTER_F: Final = ord("f")
SPACE: Final = ord(" ")
UPPER_T: Final = ord("T")
UPPER_Z: Final = ord("Z")


def word_of(text: str) -> tuple[np.uint64, np.uint64]:
    """(word, mask): the bytes at p are `text`, at most 8 of them, if load_word(p) & mask == word."""
    raw = text.encode()
    return _U(int.from_bytes(raw, "little")), _U((1 << (8 * len(raw))) - 1)


_TRUE, _MASK_4 = word_of("true")
_FALSE, _MASK_5 = word_of("false")
_NULL, _ = word_of("null")


def join(values: Sequence[bytes | None]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The records with NUL between and behind them, and where each begins, and behind the last NUL; m records give (m + 1,) positions."""
    try:
        joined = b"\0".join([*values, _PADDING])  # type: ignore[list-item]  # None, which is rare, is dealt with below
        lengths = np.fromiter(map(len, values), np.int64, len(values))  # type: ignore[arg-type]  # the same
    except TypeError:
        return join([value or b"" for value in values])
    starts = np.zeros(len(values) + 1, np.int64)
    np.cumsum(lengths + 1, out=starts[1:])
    return np.frombuffer(joined, np.uint8), starts


class Columns:
    """Room for what a scanner finds in m records, at most n samples; untouched room costs no memory."""

    def __init__(self, m: int, n: int) -> None:
        self.done = np.zeros(m, np.bool_)
        self.first = np.zeros(m + 1, np.int64)
        self.record = np.empty(n, np.int32)
        self.time_ms = np.empty(n, np.int64)
        self.value = np.empty(n)
        self.hashes = np.empty((n, 2), np.uint64)

    def scanned(self) -> Scanned:
        """What was found, without the room that was not needed."""
        n = int(self.first[-1])
        return Scanned(self.done, self.first, self.record[:n].copy(), self.time_ms[:n].copy(), self.value[:n].copy(), self.hashes[:n])


def unit_code(unit: TimestampUnit) -> int:
    """The unit as compiled code knows it."""
    return UNITS.index(unit)


# --- strings ------------------------------------------------------------------------------------------------


@njit(forceinline=True)
def skip_space(data: Address, p: int) -> int:
    """Behind what JSON calls white space."""
    while byte_at(data, p) <= SPACE and (
        byte_at(data, p) == SPACE or byte_at(data, p) == 10 or byte_at(data, p) == 13 or byte_at(data, p) == 9
    ):
        p += 1
    return p


@njit(forceinline=True)
def _zero_bytes(word: np.uint64) -> np.uint64:
    """High bits of the zero bytes; exact up to the first one, may be wrong above it."""
    return (word - _ONES) & ~word & _HIGHS


@njit(forceinline=True)
def _zero_bytes_exactly(word: np.uint64) -> np.uint64:
    """High bits of the zero bytes."""
    return ~(((word & _LOWS) + _LOWS) | word | _LOWS)


@njit(forceinline=True)
def _below(word: np.uint64, lowest: np.uint64) -> np.uint64:
    """High bits of the bytes below the one that `lowest` repeats, which is ASCII; exact up to the first one."""
    return (word - lowest) & ~word & _HIGHS


@njit(forceinline=True)
def _fold(a: np.uint64, b: np.uint64) -> np.uint64:
    """Both halves of the product: every bit of a and b takes part in every bit of the result (as in wyhash)."""
    folded: np.uint64 = (a * b) ^ multiply_high(a, b)
    return folded


# Digits of pi: odd, and of no other meaning.
_K1: Final = _U(0x243F6A8885A308D3)
_K2: Final = _U(0x13198A2E03707345)
_K3: Final = _U(0xA4093822299F31D1)
_K4: Final = _U(0x082EFA98EC4E6C89)
_K5: Final = _U(0x452821E638D01377)
_K6: Final = _U(0xBE5466CF34E90C6D)


@njit(forceinline=True)
def read_string(data: Address, p: int) -> tuple[int, np.uint64, np.uint64, bool]:
    """A string from behind its opening quote: (behind the closing quote, hash, second hash, whether it is ASCII).

    Declines escapes and control characters. Bytes that are no valid UTF-8 pass: the caller must let them take part in the identity of
    a sample, whose first appearance is read exactly, or else decline what is not ASCII.
    """
    start = p
    a, b, seen = _K1, _K2, _ZERO
    while True:
        word = load_word(data, p)
        stop = _zero_bytes(word ^ _QUOTES) | _zero_bytes(word ^ _BACKSLASHES) | _below(word, SPACES)
        if stop == _ZERO:
            a, b = _fold(a ^ word, _K3), _fold(b ^ word, _K4)
            seen |= word
            p += 8
            continue
        n = trailing_zeros(stop) >> 3
        word &= (_ONE << _U(8 * n)) - _ONE
        p += n
        length = _U(p - start)
        a, b = _fold(a ^ word, _K3 ^ length), _fold(b ^ word, _K4 ^ length)
        if byte_at(data, p) != QUOTE:
            return DECLINED, a, b, False
        return p + 1, a, b, ((seen | word) & _HIGHS) == _ZERO


@njit(forceinline=True)
def read_tags(data: Address, p: int) -> tuple[int, np.uint64, np.uint64]:
    """An object of tags from its opening brace, left raw: (behind its closing brace, hash, second hash).

    Whether it is valid is not looked at: its first appearance is read exactly, and equal bytes end at the same brace.
    """
    p += 1
    start = p
    a, b, quotes = _K5, _K6, _ZERO
    while True:
        word = load_word(data, p)
        odd = _zero_bytes(word ^ _BACKSLASHES) | _zero_bytes(word ^ _OPENING) | _below(word, SPACES)
        closing = _zero_bytes_exactly(word ^ _CLOSING)
        if closing == _ZERO and odd == _ZERO:
            quotes += count_ones(_zero_bytes_exactly(word ^ _QUOTES))
            a, b = _fold(a ^ word, _K3), _fold(b ^ word, _K4)
            p += 8
            continue
        n = trailing_zeros(closing | odd) >> 3
        mask = (_ONE << _U(8 * n)) - _ONE
        quotes += count_ones(_zero_bytes_exactly(word ^ _QUOTES) & mask)
        p += n
        if byte_at(data, p) != CLOSE or (quotes & _ONE) != _ZERO:
            return _read_odd_tags(data, start - 1)
        length = _U(p - start)
        word &= mask
        return p + 1, _fold(a ^ word, _K3 ^ length), _fold(b ^ word, _K4 ^ length)


@njit
def _read_odd_tags(data: Address, p: int) -> tuple[int, np.uint64, np.uint64]:
    """The same, byte by byte, for tags with escapes, braces within strings, or line ends."""
    start, depth, quoted = p, 0, False
    while True:
        byte = byte_at(data, p)
        if byte == 0:
            return DECLINED, _ZERO, _ZERO
        if quoted:
            if byte == BACKSLASH:
                p += 1
                if byte_at(data, p) == 0:
                    return DECLINED, _ZERO, _ZERO
            quoted = byte != QUOTE
        elif byte == QUOTE:
            quoted = True
        elif byte == OPEN:
            depth += 1
        elif byte == CLOSE:
            depth -= 1
            if depth == 0:
                break
        p += 1
    a, b = hash_bytes(data, start + 1, p)
    return p + 1, a, b


@njit
def hash_bytes(data: Address, p: int, end: int) -> tuple[np.uint64, np.uint64]:
    """Two hashes of byte_at(data, p:end)."""
    a, b, length = _K5, _K6, _U(end - p)
    while p + 8 <= end:
        word = load_word(data, p)
        a, b = _fold(a ^ word, _K3), _fold(b ^ word, _K4)
        p += 8
    word = load_word(data, p) & ((_ONE << _U(8 * (end - p))) - _ONE)
    return _fold(a ^ word, _K3 ^ length), _fold(b ^ word, _K4 ^ length)


@njit(forceinline=True)
def read_token(data: Address, p: int, last: np.uint64, other: np.uint64, lowest: np.uint64) -> tuple[int, np.uint64, np.uint64]:
    """Bytes up to one that is `last`: (its position, hash, second hash); each byte is given as a word of eight of them.

    Declines `other`, backslashes and bytes below `lowest` before it. What is not valid UTF-8 passes, see `read_string`.
    """
    start = p
    a, b = _K1, _K2
    while True:
        word = load_word(data, p)
        stop = _zero_bytes(word ^ last) | _zero_bytes(word ^ other) | _zero_bytes(word ^ _BACKSLASHES) | _below(word, lowest)
        if stop == _ZERO:
            a, b = _fold(a ^ word, _K3), _fold(b ^ word, _K4)
            p += 8
            continue
        n = trailing_zeros(stop) >> 3
        word &= (_ONE << _U(8 * n)) - _ONE
        p += n
        length = _U(p - start)
        a, b = _fold(a ^ word, _K3 ^ length), _fold(b ^ word, _K4 ^ length)
        return (p if byte_at(data, p) == last & _U(0xFF) else DECLINED), a, b


@njit(forceinline=True)
def base_of(name: np.uint64, tags: np.uint64) -> np.uint64:
    """One half of the hash of what the samples of a metric have in common."""
    return _fold(name ^ _K2, tags ^ _K6)


@njit(forceinline=True)
def identity_of(base: np.uint64, field: np.uint64) -> np.uint64:
    """One half of the hash of a sample's series."""
    return _fold(base ^ _K5, field ^ _K1)


# --- numbers ------------------------------------------------------------------------------------------------


@njit(forceinline=True)
def read_number(data: Address, p: int) -> tuple[int, float, np.uint64, bool]:
    """A JSON number: (behind it, correctly rounded value, absolute value if it is an integer, whether it is one).

    Declines more than 19 digits, and magnitudes that no metric has.
    """
    negative = byte_at(data, p) == MINUS
    if negative:
        p += 1
    start = p
    mantissa = _ZERO
    while _U(byte_at(data, p) - DIGIT_0) <= _NINE:
        mantissa = mantissa * _TEN + _U(byte_at(data, p) - DIGIT_0)
        p += 1
    digits = p - start
    if digits == 0 or (digits > 1 and byte_at(data, start) == DIGIT_0):
        return DECLINED, 0.0, _ZERO, False
    exponent = 0
    whole = True
    if byte_at(data, p) == POINT:
        whole = False
        p += 1
        point = p
        while _U(byte_at(data, p) - DIGIT_0) <= _NINE:
            mantissa = mantissa * _TEN + _U(byte_at(data, p) - DIGIT_0)
            p += 1
        exponent = point - p
        if exponent == 0:
            return DECLINED, 0.0, _ZERO, False
        digits -= exponent
    if digits > 19:
        # Leading zeros are no digits of the mantissa, which has not overflown if not more than 19 are left.
        q = start
        while byte_at(data, q) == DIGIT_0 or byte_at(data, q) == POINT:
            digits -= byte_at(data, q) == DIGIT_0
            q += 1
        if digits > 19:
            return DECLINED, 0.0, _ZERO, False
    if byte_at(data, p) | 32 == LETTER_E:
        whole = False
        p, power = _read_exponent(data, p + 1)
        if p < 0:
            return DECLINED, 0.0, _ZERO, False
        exponent += power
    if exponent == 0:
        value = float(mantissa)
    else:
        value = scale(mantissa, exponent)
        if value < 0.0:
            return DECLINED, 0.0, _ZERO, False
    if negative and not (whole and mantissa == _ZERO):
        # The integer -0 is 0, the float -0.0 is not.
        value = -value
    return p, value, mantissa, whole


@njit
def _read_exponent(data: Address, p: int) -> tuple[int, int]:
    """Behind the exponent of a number, and the exponent; from behind its letter."""
    negative = byte_at(data, p) == MINUS
    if negative or byte_at(data, p) == PLUS:
        p += 1
    start, power = p, 0
    while _U(byte_at(data, p) - DIGIT_0) <= _NINE:
        power = power * 10 + (byte_at(data, p) - DIGIT_0)
        p += 1
    if p == start or p > start + 4:
        return DECLINED, 0
    return p, -power if negative else power


_EXACT_POWERS: Final = np.array([10.0**power for power in range(23)])
_LOWEST_POWER: Final = -27
_HIGHEST_POWER: Final = 55


def _powers_of_five() -> NDArray[np.uint64]:
    """5^q for q from -27 to 55: the upper 128 bits of each, first bit set; high word, low word."""
    words = []
    for q in range(_LOWEST_POWER, _HIGHEST_POWER + 1):
        if q < 0:
            divisor = 5**-q
            power = (1 << (divisor.bit_length() + 127)) // divisor + 1
            power >>= power.bit_length() - 128
        else:
            power = 5**q << 128 >> (5**q).bit_length()
        words += [power >> 64, power & (2**64 - 1)]
    return np.array(words, np.uint64)


_POWERS: Final = _powers_of_five()


@njit
def scale(mantissa: np.uint64, exponent: int) -> float:
    """Correctly rounded mantissa * 10^exponent; negative if the exponent is out of the range that is dealt with.

    Clinger, How to read floating point numbers accurately (1990), where both are exact; else Lemire, Number parsing at a gigabyte per
    second (2021), Algorithm 1: between -27 and 55 its product of 128 bits always decides, and nothing is subnormal or infinite.
    """
    if mantissa <= _U(1 << 53) and -22 <= exponent <= 22:
        value: float = float(mantissa) / _EXACT_POWERS[-exponent] if exponent < 0 else float(mantissa) * _EXACT_POWERS[exponent]
        return value
    if mantissa == _ZERO:
        return 0.0
    if exponent < _LOWEST_POWER or exponent > _HIGHEST_POWER:
        return -1.0
    zeros = leading_zeros(mantissa)
    normal = mantissa << _U(zeros)
    entry = 2 * (exponent - _LOWEST_POWER)
    high, low = multiply_high(normal, _POWERS[entry]), normal * _POWERS[entry]
    if high & _U(0x1FF) == _U(0x1FF):
        more = multiply_high(normal, _POWERS[entry + 1])
        low += more
        if low < more:
            high += _ONE
    top = high >> _U(63)
    bits = high >> (top + _U(9))
    if low <= _ONE and -4 <= exponent <= 23 and (bits & _THREE) == _ONE and (bits << (top + _U(9))) == high:
        bits &= ~_ONE  # half way between two floats: to the even one
    bits = (bits + (bits & _ONE)) >> _ONE
    power = ((217706 * exponent) >> 16) + 63 + signed(top) - zeros + 1023
    if bits >= _U(1 << 53):
        bits = _U(1 << 52)
        power += 1
    rounded: float = float_of_bits((bits & _U((1 << 52) - 1)) | (_U(power) << _U(52)))
    return rounded


@njit(forceinline=True)
def read_time(data: Address, p: int, unit: int) -> tuple[int, int]:
    """A timestamp: (behind it, event time in ms); see times.milliseconds."""
    if byte_at(data, p) == QUOTE:
        return _read_iso_time(data, p + 1)
    p, value, integer, whole = read_number(data, p)
    if p < 0 or value < 0.0:
        return DECLINED, 0
    time_ms = time_of_integer(integer, unit) if whole else _time_of_float(value, unit)
    return (p if time_ms >= 0 else DECLINED), time_ms


@njit(forceinline=True)
def time_of_integer(integer: np.uint64, unit: int) -> int:
    """Event time in ms of a timestamp without a fraction; negative if out of bounds."""
    if unit == 0:
        unit = 1 if integer < _U(BELOW_MS) else 2 if integer < _U(BELOW_US) else 3 if integer < _U(BELOW_NS) else 4
    if unit == 1:
        integer = integer * _U(1000) if integer < _U(END_MS) else _U(END_MS)
    elif unit == 3:
        integer //= _U(1000)
    elif unit == 4:
        integer //= _U(1_000_000)
    time_ms: int = signed(integer) if integer < _U(END_MS) else -1
    return time_ms


@njit
def _read_iso_time(data: Address, p: int) -> tuple[int, int]:
    """The usual shape of ISO 8601, from behind its opening quote: 2025-12-17T19:33:20[.123][Z|+01:00]"."""
    year, month, day = _two_digits(data, p) * 100 + _two_digits(data, p + 2), _two_digits(data, p + 5), _two_digits(data, p + 8)
    hour, minute, second = _two_digits(data, p + 11), _two_digits(data, p + 14), _two_digits(data, p + 17)
    shape = (
        byte_at(data, p + 4) == MINUS
        and byte_at(data, p + 7) == MINUS
        and byte_at(data, p + 13) == COLON
        and byte_at(data, p + 16) == COLON
    )
    if not (shape and (byte_at(data, p + 10) == UPPER_T or byte_at(data, p + 10) == SPACE)):
        return DECLINED, 0
    if not (1970 <= year <= 2099 and 1 <= month <= 12 and 1 <= day <= _days_of(year, month)):
        return DECLINED, 0
    if not (0 <= hour <= 23 and 0 <= minute <= 59 and 0 <= second <= 59):
        return DECLINED, 0
    p += 19
    thousandths = 0
    if byte_at(data, p) == POINT:
        p += 1
        start, weight = p, 100
        while 0 <= byte_at(data, p) - DIGIT_0 <= 9:
            thousandths += weight * (byte_at(data, p) - DIGIT_0)
            weight //= 10
            p += 1
        if p == start:
            return DECLINED, 0
    offset = 0
    if byte_at(data, p) == UPPER_Z:
        p += 1
    elif byte_at(data, p) == PLUS or byte_at(data, p) == MINUS:
        hours, minutes = _two_digits(data, p + 1), _two_digits(data, p + 4)
        if not (0 <= hours <= 23 and byte_at(data, p + 3) == COLON and 0 <= minutes <= 59):
            return DECLINED, 0
        offset = (hours * 60 + minutes) * (-1 if byte_at(data, p) == MINUS else 1)
        p += 6
    if byte_at(data, p) != QUOTE:
        return DECLINED, 0
    # Days since 1970 with years that begin in March, so that the leap day is a year's last.
    march_year = year - (month <= 2)
    days = 365 * march_year + march_year // 4 - march_year // 100 + march_year // 400 + (153 * ((month + 9) % 12) + 2) // 5 + day - 719_469
    time_ms = (((days * 24 + hour) * 60 + minute - offset) * 60 + second) * 1000 + thousandths
    return (p + 1 if 0 <= time_ms < END_MS else DECLINED), time_ms


@njit(forceinline=True)
def _two_digits(data: Address, p: int) -> int:
    """Their number, or one below -10,000."""
    tens, ones = byte_at(data, p) - DIGIT_0, byte_at(data, p + 1) - DIGIT_0
    return 10 * tens + ones if 0 <= tens <= 9 and 0 <= ones <= 9 else -1_000_000


@njit(forceinline=True)
def _days_of(year: int, month: int) -> int:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


@njit
def _time_of_float(value: float, unit: int) -> int:
    """Event time in ms of a timestamp with a fraction or an exponent, which is not negative; negative if out of bounds."""
    if unit == 0:
        unit = 1 if value < BELOW_MS else 2 if value < BELOW_US else 3 if value < BELOW_NS else 4
    if unit == 1:
        value *= 1000.0
    elif unit == 3:
        value /= 1000.0
    elif unit == 4:
        value /= 1_000_000.0
    return int(np.rint(value)) if value < END_MS - 1.0 else -1


# --- other members of an object -----------------------------------------------------------------------------


@njit(forceinline=True)
def read_literal(data: Address, p: int) -> tuple[int, int]:
    """(behind it, 1) for true, 0 for false, -1 for null."""
    word = load_word(data, p)
    if word & _MASK_4 == _TRUE:
        return p + 4, 1
    if word & _MASK_5 == _FALSE:
        return p + 5, 0
    if word & _MASK_4 == _NULL:
        return p + 4, -1
    return DECLINED, 0


@njit
def skip_member(data: Address, p: int) -> int:
    """Behind a member that is not used, from behind the opening quote of its name; declines lists and objects."""
    p, _, _, ascii_ = read_string(data, p)
    if p < 0 or not ascii_:
        return DECLINED
    p = skip_colon(data, p)
    if p < 0:
        return DECLINED
    if byte_at(data, p) == QUOTE:
        p, _, _, ascii_ = read_string(data, p + 1)
        return p if ascii_ else DECLINED
    if byte_at(data, p) >= LETTER_F:
        return read_literal(data, p)[0]
    return read_number(data, p)[0]


@njit(forceinline=True)
def skip_colon(data: Address, p: int) -> int:
    """From behind a member's name to its value."""
    p = skip_space(data, p)
    if byte_at(data, p) != COLON:
        return DECLINED
    return skip_space(data, p + 1)


@njit
def is_among(name: np.uint64, names: Address, start: int, end: int) -> bool:
    """Whether a field's name, given by its hash, is among the pairs of hashes from `start` to `end`."""
    for k in range(start, end):  # noqa: SIM110 - numba has no generators
        if word_at(names, 2 * k) == name:
            return True
    return False
