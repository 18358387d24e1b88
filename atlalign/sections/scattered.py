"""Joins scattered cells and layers of cells, as in gene expression, into the sections that a network recognises."""

import numpy as np
import torch

from atlalign.io.pieces import Found
from atlalign.recognition.counting import Seen, recognised_sections

_BRIGHT = 99  # percentile of the tissue


def with_cells_joined(found: Found) -> Found:
    """Return the recognised sections of a slide, or the original pieces if no section is recognised.

    Args:
        found: Pieces of tissue that is not solid.
    """
    tissue = found.strength > 1
    if not tissue.any():
        return found
    bright = float(np.percentile(found.strength[tissue], _BRIGHT))
    seen = Seen.of(torch.from_numpy(np.clip(np.where(tissue, found.strength, 0) / bright, 0, 1)))
    sections = recognised_sections(seen)
    if not sections:
        return found
    numbered = np.zeros(seen.tissue.shape, np.int32)
    for number, section in enumerate(sections, 1):
        numbered[section.tissue] = number
    height, width = found.labels.shape
    last_row, last_column = np.subtract(numbered.shape, 1)
    rows = np.minimum(np.arange(height) // seen.factor, last_row)
    columns = np.minimum(np.arange(width) // seen.factor, last_column)
    labels = numbered[np.ix_(rows, columns)]
    left_out = [piece for piece in found.left_out if not labels[piece.box][piece.mask].any()]
    return found._replace(labels=labels, left_out=left_out)
