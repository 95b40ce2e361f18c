"""How much one request, and all together, may take of a server, and what its plan must have."""

from __future__ import annotations

from dataclasses import dataclass

# Pictures come that were not known before: encoders stay loaded, instead of a cache on disk.
RESIDENT = "cached_encoders=[]"


@dataclass(frozen=True)
class Limits:
    """Limits of one server. Waiting requests are in memory, with pictures up to `picture_bytes`."""

    picture_bytes: int = 16 << 20
    pixels: int = 50_000_000
    questions: int = 32  # of a request
    letters: int = 2000  # of a question
    waiting: int = 32  # requests, those that are being answered among them
    seconds: float = 120.0  # of a request, from its first byte to its answer

    @property
    def body_bytes(self) -> int:
        """Of a request: the picture, and room for its questions."""
        return self.picture_bytes + 8 * self.questions * self.letters
