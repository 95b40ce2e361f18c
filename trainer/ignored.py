"""Values that mark what is neither learnt nor scored. One definition each, without torch."""

from __future__ import annotations

IGNORE_LABEL = -100  # of a token that is not supervised: the convention of F.cross_entropy
IGNORE_PIXEL = 255  # of a mask
