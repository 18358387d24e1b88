"""Device names: a device of this machine, or an error of one sentence."""

import pytest
import torch

from atlalign.errors import InputError
from atlalign.networks.device import chosen_device


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert chosen_device("auto").type == expected
    assert chosen_device("cpu") == torch.device("cpu")


# On `meta`, PyTorch computes shapes and no values.
@pytest.mark.parametrize("name", ["toaster", "meta", "cuda:99", "cpu:x", "", 5, None])
def test_a_device_that_this_machine_lacks_is_named(name):
    with pytest.raises(InputError, match=f"^device: expected .*, got {name}"):
        chosen_device(name)
