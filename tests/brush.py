"""Label Studio's brush run lengths, as its editor packs them (thi.ng's rle-pack)."""

from __future__ import annotations

from itertools import groupby

import numpy as np

COLOUR = (255, 80, 0, 128)  # RGBA of what was painted: the last of them says that it is


def packed(mask: np.ndarray) -> list[int]:
    """The bytes of a mask [H, W]: painted pixels one value after the other, the rest as runs."""
    values = (np.where(mask[..., None], COLOUR, 0)).reshape(-1).tolist()
    bits = f"{len(values):032b}{8 - 1:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for painted, group in groupby(values, bool):
        run = list(group)
        most = 2**8 if painted else 2**16
        for start in range(0, len(run), most):
            part = run[start : start + most]
            if painted:
                bits += f"010{len(part) - 1:08b}" + "".join(f"{value:08b}" for value in part)
            else:
                bits += f"111{len(part) - 1:016b}{0:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]
