"""Sizes as people type them."""

import pytest

from profiles.sizes import GIB, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * GIB),
        ("8 gib", 8 * GIB),
        ("8\u00a0GiB", 8 * GIB),
        (" 7.5GiB ", 7.5 * GIB),
        ("8", 8 * GIB),
        ("8,5", 8.5 * GIB),
        ("8,25 GiB", 8.25 * GIB),
        ("8G", 8 * GIB),
        ("24 g", 24 * GIB),
        ("8GB", 8 * 10**9),
        ("8 gb", 8 * 10**9),
        ("8192MiB", 8 * GIB),
        ("8192 M", 8 * GIB),
        ("8192MB", 8192 * 10**6),
        ("512", 512 * GIB),
        ("1TiB", 1024 * GIB),
    ],
)
def test_what_people_type(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8192", "did you mean 8192MiB?"),  # nvidia-smi's MiB, not 8 TiB
        ("12288,5", "did you mean"),
        ("9" * 400, "did you mean"),
        ("8,192MiB", "thousands without a comma"),
        ("1,234,567", "thousands without a comma"),
        ("0", "more than 0"),
        ("0.0000000001", "more than 0"),
        ("9" * 400 + "GiB", "at most 16384GiB"),
        ("", "such as 8GiB"),
        ("-8", "such as 8GiB"),
        ("+8", "such as 8GiB"),
        ("nan", "such as 8GiB"),
        ("infGiB", "such as 8GiB"),
        ("1e9", "such as 8GiB"),
        ("8 KiB", "units: GiB, MiB, TiB, GB, MB, TB"),
        ("8GiBs", "such as 8GiB"),
        ("8.5.5", "such as 8GiB"),
        ("\uff18GiB", "such as 8GiB"),
        ("x" * 10_000, "such as 8GiB"),
    ],
)
def test_nonsense_is_an_error_that_says_what_to_write(text, words):
    with pytest.raises(ValueError) as caught:
        parse_size(text)
    assert words in str(caught.value) and len(str(caught.value)) < 200
