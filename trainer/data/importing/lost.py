"""Which pictures and labels the broken entries of a source are about.

A question about one of them fails only because the entry is broken: it is no finding of its own,
and no similar picture is suggested for it. A broken entry without a picture or a label may be about
any.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.data.importing.labels import composed, label_key
from trainer.data.picture_names import stems


@dataclass
class Lost:
    """Pairs of a picture and a label, None for any; a picture by its file name without suffix.

    The names in annotations and in questions start from different folders.
    """

    about: set[tuple[str | None, str | None]] = field(default_factory=set)

    def add(self, picture: object = None, label: str | None = None) -> None:
        """An entry is broken that is about this, as far as it says."""
        key = None if label is None else label_key(label)
        self.about |= {(stem, key) for stem in _called(picture)}

    def has(self, picture: str) -> bool:
        """Whether an entry is broken that names this picture."""
        named = {stem for stem, _ in self.about}
        return not named.isdisjoint(_called(picture))

    def answers(self, picture: str, label: str) -> bool:
        """Whether a broken entry may be what answers a question about this label, by its key."""
        pairs = {(stem, key) for stem in (*_called(picture), None) for key in (label, None)}
        return not self.about.isdisjoint(pairs)


def _called(picture: object) -> set[str] | set[None]:
    return stems(composed(picture)) if isinstance(picture, str) else {None}
