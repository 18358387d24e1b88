"""Rows for a GPU: the local training step in bfloat16, compiled, channels last."""

from dataclasses import replace

import torch

from atlalign.data.datamodule import DeviceDataModule
from atlalign.networks import LocalUNet
from benchmarks import loading
from benchmarks.fields import online_module
from benchmarks.measure import Measured, NotMeasuredError, Size, Turns, in_turns, scratch
from benchmarks.networks import Layer, local_layers, random_batch, stepper

_BATCH = 32
_COPIED = 2**30
_STEPS = 40  # Workers read ahead, so the first steps find batches ready and are not representative.
_BATCHES = 8  # in an epoch
_DEVICE, _TRAINED_ON = "cuda", "gpu"


def against_copy(size: Size) -> Measured:
    """Return a step's time divided by the time that the card needs to copy as many bytes.

    Each convolution reads its input and writes its output, in the forward pass and for both gradients, with two bytes a
    number.
    """
    _check_device()
    network = _fast_network()
    step = stepper(network, random_batch(_BATCH, size.shape, _DEVICE), torch.bfloat16)
    moved = _BATCH * sum(map(_bytes, local_layers(network.hyperparameters, size.shape)))
    source = torch.empty(_COPIED, dtype=torch.uint8, device=_DEVICE)
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
    """Return a step's time divided by that of the step in float32, neither compiled nor channels last."""
    _check_device()
    batch = random_batch(_BATCH, size.shape, _DEVICE)
    turns = in_turns(
        stepper(_fast_network(), batch, torch.bfloat16), stepper(LocalUNet().to(_DEVICE), batch), size
    )
    return Measured(
        turns.times_as_long(), turns, " and ".join(f"{1e3 * min(times):.1f} ms" for times in turns)
    )


def training_loop(size: Size) -> Measured:
    """Compare steps on batches that workers read with steps on one batch."""
    _check_device()
    size = replace(size, steps=_STEPS * size.steps, samples=_BATCHES * _BATCH)
    with scratch() as folder:
        return _compare(loading.data_module(folder, size, batch_size=_BATCH), size)


def online(size: Size) -> Measured:
    """Compare steps on batches of `data=online`, drawn by workers and made on the device, with steps on one batch."""
    _check_device()
    size = replace(size, steps=_STEPS * size.steps)
    return _compare(online_module(size, batch_size=_BATCH, samples_per_epoch=_BATCHES * _BATCH), size)


def _compare(data: DeviceDataModule, size: Size) -> Measured:
    return loading.compare_loops(
        _fast_network(), data, size, accelerator=_TRAINED_ON, devices=1, precision="bf16-mixed"
    )


def _check_device() -> None:
    if not torch.cuda.is_available():
        raise NotMeasuredError("needs a GPU")


def _fast_network() -> LocalUNet:
    network = LocalUNet().to(_DEVICE).to(memory_format=torch.channels_last)
    network.compile()
    return network


def _bytes(layer: Layer) -> int:
    return 3 * 2 * (layer.in_channels + layer.out_channels) * layer.pixels
