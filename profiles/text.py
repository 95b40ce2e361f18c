"""Values of others in messages: whatever they are, a few words of them."""

from __future__ import annotations

from reprlib import Repr

_LARGEST = 10**4000


class _Brief(Repr):
    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to spell numbers of thousands of digits.
        return repr(x) if abs(x) < _LARGEST else f"a number of {x.bit_length()} bits"


_BRIEF = _Brief()
_BRIEF.maxlevel = 4
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = _BRIEF.maxset = 8
_BRIEF.maxstring = _BRIEF.maxother = 200


def brief(value: object, letters: int = 60) -> str:
    """`repr(value)` in so many letters at most, however long, deep or entwined the value is."""
    text = _BRIEF.repr(value)
    return text if len(text) <= letters else text[: letters - 3] + "..."
