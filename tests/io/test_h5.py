"""Only values stored in the h5 file itself are read."""

import h5py
import numpy as np
import pytest

from atlalign.errors import InputError
from atlalign.io.h5 import find_dataset

VALUES = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["values"] = VALUES
        other["group/values"] = VALUES
    (tmp_path / "raw.bin").write_bytes(VALUES.tobytes())
    layout = h5py.VirtualLayout(VALUES.shape, np.uint8)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "values", VALUES.shape)
    with h5py.File(tmp_path / "a.h5", "w") as made:
        made["values"] = VALUES
        made["deep/values"] = VALUES
        made["soft"] = h5py.SoftLink("/deep/values")
        made["deep/relative"] = h5py.SoftLink("values")
        made["dangling"] = h5py.SoftLink("/nowhere")
        made["loop"] = h5py.SoftLink("/loop")
        made["linked"] = h5py.ExternalLink("other.h5", "values")
        made["linked_group"] = h5py.ExternalLink("other.h5", "group")
        made["through"] = h5py.SoftLink("/linked")
        made["gone"] = h5py.ExternalLink("nowhere.h5", "values")
        made.create_dataset("stored", VALUES.shape, np.uint8, external=str(tmp_path / "raw.bin"))
        made.create_virtual_dataset("virtual", layout)
    with h5py.File(tmp_path / "a.h5") as opened:
        yield opened


@pytest.mark.parametrize("name", ["values", "/values", "deep/values", "soft", "deep/relative"])
def test_internal_data_is_found(file, name):
    found = find_dataset(file, name)
    assert found is not None
    assert (found[...] == VALUES).all()


@pytest.mark.parametrize("name", ["nothing", "deep", "values/more", "dangling", "loop", "/", ""])
def test_names_that_lead_to_no_dataset(file, name):
    assert find_dataset(file, name) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("linked", "other.h5"),
        ("linked_group/values", "other.h5"),
        ("through", "other.h5"),
        ("gone", "nowhere.h5"),
        ("stored", "external storage"),
        ("virtual", "virtual"),
    ],
)
def test_data_in_another_file_is_refused(file, name, kind):
    with pytest.raises(InputError, match=rf"a\.h5\[{name}\].*{kind}"):
        find_dataset(file, name)
