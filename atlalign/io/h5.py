"""Datasets in h5 files: only values stored in the file itself are read.

An external link, external storage or a virtual dataset can point to any file on the machine. The values would then
depend on files that the user did not choose, and could change without the h5 file changing.
"""

import h5py

from atlalign.errors import InputError

_LINKS_AT_MOST = 16  # as in the HDF5 library


def find_dataset(file: h5py.File, name: str) -> h5py.Dataset | None:
    """Return the dataset with a name such as `deep/template`, or None if the name leads to no dataset.

    No other file is opened.

    Raises:
        InputError: If its values are, or may be, stored in another file.
    """
    found = _followed(file, name)
    if not isinstance(found, h5py.Dataset):
        return None
    for others, kind in ((found.external, "external storage"), (found.is_virtual, "a virtual dataset")):
        if others:
            raise _elsewhere(file, name, kind)
    return found


def _followed(file: h5py.File, name: str) -> h5py.HLObject | None:
    """Return the object with this name, checking each link on the way before following it."""
    place: h5py.HLObject = file
    parts, links = name.split("/"), 0
    while parts:
        part = parts.pop(0)
        if part in ("", "."):
            continue
        link = place.get(part, getlink=True) if isinstance(place, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            raise _elsewhere(file, name, f"a link to '{link.filename}'")
        if isinstance(link, h5py.SoftLink) and links < _LINKS_AT_MOST:
            links += 1
            parts = link.path.split("/") + parts
            place = file if link.path.startswith("/") else place
        elif isinstance(link, h5py.HardLink) and isinstance(place, h5py.Group):
            place = place[part]
        else:
            return None
    return place


def _elsewhere(file: h5py.File, name: str, kind: str) -> InputError:
    return InputError(
        f"{file.filename}[{name}]: expected values that lie in this file, found {kind}: copy the values into the file"
    )
