"""Words of command lines that are printed to be copied."""

import os
import shlex
import subprocess

import pytest

from profiles.text import argument, quoted

SPACED = [r"C:\My data", r"C:\My data" + "\\", r'a "b" c', "a  b\\\\", r"\\server\a share\x"]


@pytest.mark.parametrize("word", SPACED)
def test_windows_programs_get_the_word_back(word: str) -> None:
    """Python's own list2cmdline is the reference."""
    assert quoted(word, windows=True) == subprocess.list2cmdline([word])


def test_windows_shells_know_no_single_quotes() -> None:
    assert quoted(r"C:\data\cups", windows=True) == r"C:\data\cups"
    assert quoted("lora.rank=16", windows=True) == "lora.rank=16"
    for word in ("train=mask_decoder,token_rows", "a&b", "it's", "x y", "(1)", "", "a;b", "a b'"):
        found = quoted(word, windows=True)
        assert found == f'"{word}"', "cut by cmd.exe or by PowerShell"


@pytest.mark.skipif(os.name == "nt", reason="of other systems")
def test_other_shells_get_the_word_back() -> None:
    for word in (*SPACED, "it's", "$x", "-run x"):
        assert shlex.split(argument(word)) in ([word], [f"./{word}"])
