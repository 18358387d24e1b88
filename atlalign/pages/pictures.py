"""Pictures and outlines as text to embed in a page."""

from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_QUALITY = 80
_EFFORT = 4  # of 6; higher values take twice the time and save a few per cent


def picture_uri(pixels: NDArray[np.uint8]) -> str:
    """Return an image (H, W) or (H, W, 3) in 8 bits as a data URI in WebP format."""
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "webp", quality=_QUALITY, method=_EFFORT)
    return f"data:image/webp;base64,{b64encode(buffer.getvalue()).decode()}"


def outline_path(labels: NDArray[Any]) -> str:
    """Return the lines between pixels of different labels (H, W) as an SVG path; the first pixel ends at (1, 1).

    Relative moves halve the path's length, which matters on pages with hundreds of outlines.
    """
    lines = [(start, line + 1, length, 0) for line, start, length in _runs(labels[1:] != labels[:-1])]
    lines += [
        (line + 1, start, 0, length) for line, start, length in _runs((labels[:, 1:] != labels[:, :-1]).T)
    ]
    parts, at = [], (0, 0)
    for x, y, right, down in lines:
        dx, dy = x - at[0], y - at[1]
        parts.append(f"m{dx}{'' if dy < 0 else ' '}{dy}{f'h{right}' if right else f'v{down}'}")
        at = (x + right, y + down)
    return "".join(parts)


def _runs(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    """Yield the row, first column and length of each run of true pixels in a row."""
    steps = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))))
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    yield from zip(rows.tolist(), starts.tolist(), (ends - starts).tolist(), strict=True)
