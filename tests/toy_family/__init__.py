"""A second model family, as unlike LLaVA and SAM as a family may be: all of it is in this folder.

Its pictures take more or fewer tokens by their size, its positions are 3-D, its q, k and v have
biases, two heads of queries share one of keys, the output head is tied to the embedding table, each
decoder layer is given something of the picture, a mask is prompted by two tokens of the state at
[SEG] itself before the last norm, and its mask decoder looks at finer features too and makes three
masks.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def register() -> None:
    """Have the house find the family and its one size, `toy`."""
    import profiles.families
    import trainer.model.families
    from profiles.models import models

    if "toy" in models():
        return
    profiles.families.__path__.append(str(HERE / "profiles"))
    trainer.model.families.__path__.append(str(HERE / "trainer"))
    from profiles.families.toy import TOY

    models()["toy"] = TOY


def forget() -> None:
    """Undo `register`, for the tests that come after in the same process."""
    import sys

    import profiles.families
    import trainer.model.families
    from profiles.models import models

    models().pop("toy", None)
    for package in (profiles.families, trainer.model.families):
        package.__path__[:] = [path for path in package.__path__ if not path.startswith(str(HERE))]
    for name in [name for name in sys.modules if ".families.toy" in name]:
        del sys.modules[name]
