"""Types of arrays and of picture sizes (height, width)."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
PixelArray: TypeAlias = NDArray[np.int32]  # whole coordinates
ByteArray: TypeAlias = NDArray[np.uint8]
Size: TypeAlias = tuple[int, int]
