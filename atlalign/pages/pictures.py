"""Pictures and outlines as text that a page holds."""

from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_QUALITY = 80
_EFFORT = 4  # of 6: more takes twice the time for a few per cent


def picture_uri(pixels: NDArray[np.uint8]) -> str:
    """Return an image (H, W) or (H, W, 3) in 8 bits as a data URI in WebP format."""
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "webp", quality=_QUALITY, method=_EFFORT)
    return f"data:image/webp;base64,{b64encode(buffer.getvalue()).decode()}"


def outline_path(labels: NDArray[Any]) -> str:
    """Return the lines between pixels of different labels (H, W) as an SVG path; the first pixel ends at (1, 1)."""
    between_rows = _runs(labels[1:] != labels[:-1])
    between_columns = _runs((labels[:, 1:] != labels[:, :-1]).T)
    lines = [f"M{start} {line + 1}h{length}" for line, start, length in between_rows]
    return "".join(lines + [f"M{line + 1} {start}v{length}" for line, start, length in between_columns])


def _runs(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    """Yield row, first column and length of each run of true pixels in a row."""
    steps = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))))
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    yield from zip(rows.tolist(), starts.tolist(), (ends - starts).tolist(), strict=True)
