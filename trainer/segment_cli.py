"""lisa-segment: ask a trained run about a picture."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="The picture.")],
    question: Annotated[str, typer.Argument(help="A whole sentence, or a phrase with --phrase.")],
    run: Annotated[Path, typer.Option(help="Run folder, or a checkpoint in it.")] = Path(
        "runs/latest"
    ),
    out: Annotated[Path | None, typer.Option(help="Overlay PNG. Default: in this folder.")] = None,
    phrase: Annotated[bool, typer.Option(help="The question is a noun phrase.")] = False,
) -> None:
    """Answer QUESTION about IMAGE and write the mask as an overlay."""
    import numpy as np
    from PIL import Image

    from trainer.data.reasonseg import read_image
    from trainer.pictures import PREDICTED, overlay
    from trainer.segment import Segmenter

    try:
        if out is not None and not out.parent.is_dir():
            raise ValueError(f"{out}: there is no folder {out.parent}; make it, or name another")
        picture = read_image(image)
        answer = Segmenter(run).ask(picture, question, is_sentence=not phrase)
    except (ValueError, OSError) as error:
        text = str(error) if str(error).startswith("  - ") else f"  - {error}"
        print(f"error:\n{text}", file=sys.stderr)
        raise typer.Exit(2) from None
    print(answer.text)
    if not len(answer.masks):
        print("the answer holds no [SEG]: nothing was segmented", file=sys.stderr)
        raise typer.Exit(1)
    # Not beside the picture: a data folder holds nothing but its items.
    target = out or Path(image.stem + ".overlay.png")
    mask = np.asarray(answer.masks.any(0))
    Image.fromarray(overlay(picture, mask, PREDICTED)).save(target)
    print(f"{target}: {mask.mean():.1%} of the picture", file=sys.stderr)


def main() -> None:
    """Entry point of `lisa-segment`."""
    # On CPUs with AVX512-BF16 it asks for a package that would fetch code from a hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    app(prog_name="lisa-segment")


if __name__ == "__main__":
    main()
