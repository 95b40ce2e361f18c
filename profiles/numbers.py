"""Numbers as people type them on a command line: 0,4, 8h, $0.40, 10 %, 1,000."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TypeVar

from profiles.text import brief

T = TypeVar("T")

_NUMBER = r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:e[+-]?\d+)?"
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)  # or a decimal comma: ask
# Without a point: 1.000 would be 1 as a number, and as a plan's setting.
_COUNT = re.compile(r"(\d+|[1-9]\d{0,2}([,_' ])\d{3}(?:\2\d{3})*)(k?)", re.ASCII | re.IGNORECASE)
# Codes by name: any three letters would take min, gib and cts for money.
_CODES = "usd|eur|gbp|chf|cny|rmb|jpy|inr|krw|twd|hkd|sgd|cad|aud|nzd|sek|nok|dkk|pln|czk|brl|zar"
_SIGN = rf"(?:{_CODES}|(?:us|ca|au|c|a)?[$€£¥₹])?"
_MOST_HOURS = 1e5
_PRICE = rf"{_SIGN} *(?P<number>{_NUMBER}) *{_SIGN} *(?:(?:/|per|an) *(?:h|hr|hour))?"
_UNITS = {
    unit: seconds
    for units, seconds in (("s sec second", 1), ("m min minute", 60), ("h hr hour", 3600),
                           ("d day", 86400))
    for unit in units.split()
}  # fmt: skip
_TIME = rf"(?P<number>{_NUMBER}) *(?P<unit>[a-z]*)"
_SHARE = rf"(?P<number>{_NUMBER}) *(?P<percent>%?)"


def parse_number(text: str, allowed: str = "a number") -> float:
    """A finite number, with a point or a comma before its decimals. Raises ValueError."""
    return _number(_match(_NUMBER, text, allowed)[0], text, allowed)


def parse_hours(text: str) -> float:
    """Hours above 0, from 8, 8h, 90min or 2 days. Raises ValueError."""
    allowed = "hours above 0 and up to 100000, or a time such as 8h, 90min or 2d"
    hours = _seconds(text, "h", allowed) / 3600
    if not 0 < hours <= _MOST_HOURS:
        raise _wrong(text, allowed)
    return hours


def parse_minutes(text: str) -> float:
    """Minutes, 0 among them, from 10, 10min or 1h. Raises ValueError."""
    allowed = "a number of minutes, 0 or more, or a time such as 90s, 10min or 1h"
    minutes = _seconds(text, "min", allowed) / 60
    if minutes < 0:
        raise _wrong(text, allowed)
    return minutes


def _seconds(text: str, plain: str, allowed: str) -> float:
    """Of a time; a number alone counts `plain` units."""
    match = _match(_TIME, text, allowed)
    unit = match["unit"].lower() or plain
    seconds = _UNITS.get(unit, _UNITS.get(unit.removesuffix("s")))
    if seconds is None:
        raise _wrong(text, allowed)
    return seconds * _number(match["number"], text, allowed)


def parse_price(text: str) -> float:
    """A price above 0, from 0.4, 0,40, $0.40 or 0.40 EUR/h; its currency is left out."""
    allowed = "a number above 0, such as 0.4 or $0.40"
    price = _number(_match(_PRICE, text, allowed)["number"], text, allowed)
    if price <= 0:
        raise _wrong(text, allowed)
    return price


def parse_share(text: str) -> float:
    """A share as a number, from 0.1, 0,1 or 10 %. Raises ValueError."""
    allowed = "a share such as 0.1 or 10%"
    match = _match(_SHARE, text, allowed)
    share = _number(match["number"], text, allowed)
    return share / 100 if match["percent"] else share


def parse_count(text: str, least: int = 0) -> int:
    """A whole number, from 1000, 1,000, 1 000 or 1k. Raises ValueError."""
    allowed = f"a whole number of {least} or more{', without a point' * ('.' in text)}"
    match = _COUNT.fullmatch(_stripped(text))
    if match is None or len(match[1]) > 18:
        raise _wrong(text, allowed)
    found = int(re.sub(r"\D", "", match[1])) * (1000 if match[3] else 1)
    if found < least:
        raise _wrong(text, allowed)
    return found


def option_parser(parse: Callable[[str], T]) -> Callable[[object], T]:
    """A parser for one of typer's options, which says what `parse` does."""
    import typer

    def read(given: object) -> T:
        try:
            return parse(str(given))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return read


def _stripped(text: str) -> str:
    return text.replace("\u00a0", " ").replace("\u202f", " ").strip()


def _match(pattern: str, text: str, allowed: str) -> re.Match[str]:
    match = re.fullmatch(pattern, _stripped(text), re.ASCII | re.IGNORECASE)
    if match is None:
        raise _wrong(text, allowed)
    return match


def _number(spelled: str, text: str, allowed: str) -> float:
    if _THOUSANDS.fullmatch(spelled):
        raise _wrong(text, f"{spelled.replace(',', '')} or {spelled.replace(',', '.')}")
    value = float(spelled.replace(",", "."))
    if not math.isfinite(value):
        raise _wrong(text, allowed)
    return value


def _wrong(text: str, allowed: str) -> ValueError:
    return ValueError(f"got {brief(text)}; give {allowed}")
