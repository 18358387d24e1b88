"""Rows of a GPU: the local training step in bfloat16, compiled, channels last."""

from dataclasses import replace

import torch

from atlalign.networks import LocalUNet
from benchmarks import loading
from benchmarks.measure import Measured, NotMeasuredError, Size, Turns, in_turns, scratch
from benchmarks.networks import Layer, local_layers, random_batch, stepper

_BATCH = 32
_COPIED = 2**30
_STEPS = 20  # workers read ahead: what they have ready at first says nothing


def against_copy(size: Size) -> Measured:
    """Return how many times as long a step takes as its bytes at the rate at which the card copies.

    Each convolution reads its input and writes its output, forward and for either gradient, two bytes a number.
    """
    _check_device()
    network = _fast_network()
    step = stepper(network, random_batch(_BATCH, size.shape, "cuda"), torch.bfloat16)
    moved = _BATCH * sum(map(_bytes, local_layers(network.hyperparameters, size.shape)))
    source = torch.empty(_COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    turns = in_turns(step, lambda: target.copy_(source), size)
    torch.cuda.reset_peak_memory_stats()
    step()
    per_sample = torch.cuda.max_memory_allocated() / _BATCH / 1e6
    # A copy reads and writes.
    nominal = Turns(turns.ours, [time * moved / (2 * _COPIED) for time in turns.other])
    rate = 2 * _COPIED / min(turns.other) / 1e9
    note = f"{1e3 * min(turns.ours):.1f} ms, {per_sample:.0f} MB a sample, copies {rate:.0f} GB/s"
    return Measured(nominal.times_as_long(), nominal, note)


def against_eager(size: Size) -> Measured:
    """Return the step's share of the time of one in float32, neither compiled nor channels last."""
    _check_device()
    batch = random_batch(_BATCH, size.shape, "cuda")
    turns = in_turns(
        stepper(_fast_network(), batch, torch.bfloat16), stepper(LocalUNet().cuda(), batch), size
    )
    return Measured(
        turns.times_as_long(), turns, " and ".join(f"{1e3 * min(times):.1f} ms" for times in turns)
    )


def training_loop(size: Size) -> Measured:
    """Compare steps on batches that workers read with steps on one batch."""
    _check_device()
    size = replace(size, steps=_STEPS * size.steps)
    with scratch() as folder:
        data = loading.data_module(folder, size, batch_size=min(_BATCH, size.samples), num_workers=4)
        return loading.compare_loops(data, size, accelerator="gpu", devices=1, precision="bf16-mixed")


def _check_device() -> None:
    if not torch.cuda.is_available():
        raise NotMeasuredError("needs a GPU")


def _fast_network() -> LocalUNet:
    network = LocalUNet().cuda().to(memory_format=torch.channels_last)
    network.compile()
    return network


def _bytes(layer: Layer) -> int:
    return 3 * 2 * (layer.in_channels + layer.out_channels) * layer.pixels
