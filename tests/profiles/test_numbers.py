"""Numbers as people type them."""

import pytest

from profiles.numbers import (
    parse_count,
    parse_hours,
    parse_minutes,
    parse_number,
    parse_price,
    parse_share,
)


@pytest.mark.parametrize(
    ("parse", "texts", "value"),
    [
        (parse_number, ["1e-4", "0.0001", "0,0001", " 1E-4"], 1e-4),
        (parse_number, ["0,125", ".125", "0.125"], 0.125),
        (parse_hours, ["8", "8h", "8 hours", "8,0 hrs", "480min", "480m", "28800 s"], 8),
        (parse_hours, ["2d", "2 days"], 48),
        (parse_minutes, ["10", "10min", "600s", "10 Minutes"], 10),
        (parse_minutes, ["0"], 0),
        (parse_price, ["0.4", "0,40", "$0.40", "0.40$", "US$0.4", "€ 0,40", "0.4 EUR", "$0.4/h",
                       "0.40 USD per hour"], 0.4),
        (parse_share, ["0.1", "0,1", "10%", "10 %", "10\u00a0%"], 0.1),
        (parse_count, ["2000", "2,000", "2_000", "2 000", "2k"], 2000),
    ],
)  # fmt: skip
def test_what_people_type(parse, texts, value):
    assert [parse(text) for text in texts] == [pytest.approx(value)] * len(texts)


@pytest.mark.parametrize(
    ("parse", "text", "words"),
    [
        (parse_number, "1,000", "give 1000 or 1.000"),
        (parse_number, "1e999", "a number"),
        (parse_number, "nan", "a number"),
        (parse_hours, "8x", "8h, 90min or 2d"),
        (parse_hours, "0", "above 0"),
        (parse_hours, "1h30", "8h, 90min or 2d"),
        (parse_minutes, "-1", "0 or more"),
        (parse_price, "-1", "above 0"),
        (parse_price, "cheap", "0.4 or $0.40"),
        (parse_price, "40ct", "0.4 or $0.40"),
        (parse_price, "40 cts", "0.4 or $0.40"),
        (parse_price, "90 min", "0.4 or $0.40"),
        (parse_hours, "1e305d", "up to 100000"),
        (parse_share, "ten", "0.1 or 10%"),
        (parse_count, "1,00", "a whole number"),
        (parse_count, "2.5", "a whole number"),
        (parse_count, "2.000", "without a point"),
        (parse_count, "0,500", "a whole number"),
        (parse_count, "1,000 500", "a whole number"),
        (parse_count, "9" * 99, "a whole number"),
        (parse_count, "x" * 999, "a whole number"),
    ],
)
def test_nonsense_is_an_error_that_says_what_to_write(parse, text, words):
    with pytest.raises(ValueError, match="^got ") as caught:
        parse(text)
    assert words in str(caught.value) and len(str(caught.value)) < 200
