"""Rows for geometry and networks: their speed relative to the machine's peak rate."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from atlalign.data.dataset import RegistrationBatch
from atlalign.geometry import compose, draw_velocity, identity_grid, integrate, warp
from atlalign.losses import RegistrationLoss
from atlalign.networks import LocalUNet
from benchmarks.measure import Measured, Size, Turns, Work, in_turns


def smooth_fields(n: int, shape: tuple[int, int], largest_px: float) -> Tensor:
    """Return smooth fields (n, 2, H, W) of about the given largest displacement."""
    velocity = draw_velocity(n, shape, generator=torch.Generator().manual_seed(0))
    return integrate(velocity * largest_px / velocity.norm(dim=1).amax())


# --- warp and compose -------------------------------------------------------------------------------------------------


def warping(size: Size) -> Measured:
    """Compare `warp` of images by fields that need a gradient, as in training, with bare `grid_sample`."""
    return _against_grid_sample(
        size, lambda image, dvf: warp(image, dvf), torch.rand(8, 1, *size.shape), "zeros"
    )


def composing(size: Size) -> Measured:
    """Compare `compose` of two fields that both need a gradient with bare `grid_sample`."""
    outer = smooth_fields(8, size.shape, 8).flip(-1).requires_grad_()
    return _against_grid_sample(size, compose, outer, "border")


def _against_grid_sample(
    size: Size, ours: Callable[[Tensor, Tensor], Tensor], sampled: Tensor, padding_mode: str
) -> Measured:
    dvf = smooth_fields(8, size.shape, 15)
    lengths = torch.tensor([2 / (side - 1) for side in reversed(size.shape)]).view(1, 2, 1, 1)
    grid = ((identity_grid(size.shape, dvf.dtype, dvf.device) + dvf) * lengths - 1).permute(0, 2, 3, 1)
    grid = grid.contiguous().requires_grad_()
    dvf.requires_grad_()
    gradient = torch.rand_like(sampled)

    def bare(image: Tensor, ready: Tensor) -> Tensor:
        return F.grid_sample(image, ready, padding_mode=padding_mode, align_corners=True)

    works = (_back_and_forth(ours, sampled, dvf, gradient), _back_and_forth(bare, sampled, grid, gradient))
    turns = in_turns(*works, size)
    return Measured(turns.times_as_long(), turns)


def _back_and_forth(
    function: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor, gradient: Tensor
) -> Work:
    inputs = [part for part in (first, second) if part.requires_grad]
    return lambda: torch.autograd.grad(function(first, second), inputs, gradient)


# --- the local network ------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """A convolution of the architecture, independent of its implementation: channels, kernel side, output pixels."""

    in_channels: int
    out_channels: int
    kernel: int
    pixels: int

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one sample."""
        return self.in_channels * self.out_channels * self.kernel**2 * self.pixels


def local_layers(hyperparameters: dict[str, Any], shape: tuple[int, int]) -> list[Layer]:
    """Return the convolutions of a `LocalUNet` on images of `shape` (H, W), cropped or padded to its multiple."""
    multiple = hyperparameters["size_multiple"]
    pixels = math.prod(_predicted(side, multiple) for side in shape)
    down, up = hyperparameters["downsample_filters"], hyperparameters["upsample_filters"]
    skips = [hyperparameters["start_filters"][-1], *down]
    layers = list(_chain(2, hyperparameters["start_filters"], pixels))
    for level, (inside, outside) in enumerate(zip(skips[:-1], down, strict=True), start=1):
        layers.append(Layer(inside, outside, 3, pixels // 4**level))
    layers += _chain(skips[-1], hyperparameters["middle_filters"], pixels // 4 ** len(down))
    channels = hyperparameters["middle_filters"][-1]
    for level, (outside, skip) in enumerate(zip(up, reversed(skips[:-1]), strict=False), start=1):
        there = pixels // 4 ** (len(down) - level)
        layers += [Layer(channels, outside, 3, there), Layer(outside + skip, outside, 3, there)]
        channels = outside
    there = pixels // 4 ** (len(down) - len(up))
    layers += _chain(channels, hyperparameters["end_filters"], there)
    return [*layers, Layer(hyperparameters["end_filters"][-1], 2, 2, there)]


def _predicted(side: int, multiple: int) -> int:
    """Return the side of the predicted field: at most 8 px are cropped, or the image is padded."""
    cropped, excess = side - side % multiple, side % multiple
    return cropped if excess <= 8 and cropped else cropped + multiple


def _chain(channels: int, filters: Sequence[int], pixels: int) -> Iterator[Layer]:
    for outside in filters:
        yield Layer(channels, outside, 3, pixels)
        channels = outside


def forward_multiply_adds(layers: Sequence[Layer]) -> int:
    """Return the multiply-adds of a forward pass of one sample."""
    return sum(layer.multiply_adds for layer in layers)


def step_multiply_adds(layers: Sequence[Layer]) -> int:
    """Return the multiply-adds of a training step of one sample: output, gradient of weights, gradient of input.

    The images need no gradient.
    """
    return 3 * forward_multiply_adds(layers) - layers[0].multiply_adds


def random_batch(n: int, shape: tuple[int, int], device: str = "cpu") -> RegistrationBatch:
    """Return a random training batch, whose values do not matter."""
    image, dvf = torch.rand(n, 1, *shape, device=device), smooth_fields(n, shape, 15).to(device)
    ids = torch.zeros(n, dtype=torch.int64)
    return RegistrationBatch(image, image, warp(image, dvf), dvf, dvf, ids, ids, ids)


def stepper(network: LocalUNet, batch: RegistrationBatch, precision: torch.dtype = torch.float32) -> Work:
    """Return one step: losses mse and vector_distance (of the inverse, too, if there is one), gradients, RMSprop."""
    weights = {"image": 1, "dvf": 0.1, "inv_dvf": 0.1}
    loss = RegistrationLoss(image="mse", dvf="vector_distance", inv_dvf="vector_distance", weights=weights)
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-3, alpha=0.9, eps=1e-7)
    device = batch.dvf.device.type

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            output = network(batch.reference, batch.moving)
        loss(output, batch)["total"].backward()
        optimizer.step()

    return step


def training_step(size: Size) -> Measured:
    """Compare a step of the default local network, in the memory format that train.py chooses on a CPU."""
    network = LocalUNet().to(memory_format=torch.channels_last)
    nominal = 4 * step_multiply_adds(local_layers(network.hyperparameters, size.shape))
    return _against_product(stepper(network, random_batch(4, size.shape)), nominal, size)


def inference(size: Size) -> Measured:
    """Compare a forward pass of one pair, in the memory format that `atlalign register` chooses on a CPU."""
    network = LocalUNet().eval().to(memory_format=torch.channels_last)
    pair = torch.rand(2, 1, 1, *size.shape)
    nominal = forward_multiply_adds(local_layers(network.hyperparameters, size.shape))

    def infer() -> None:
        with torch.inference_mode():
            network(*pair)

    return _against_product(infer, nominal, size)


def _against_product(work: Work, multiply_adds: int, size: Size) -> Measured:
    """Return the achieved share of the rate of a large float32 matrix product."""
    left, right = torch.rand(2, size.matrix, size.matrix)
    turns = in_turns(work, lambda: left @ right, size)
    of_product = size.matrix**3
    nominal = Turns(turns.ours, [time * multiply_adds / of_product for time in turns.other])
    rate = of_product / min(turns.other) / 1e9
    return Measured(
        nominal.times_as_fast(),
        nominal,
        f"{min(turns.ours):.3g} s, {multiply_adds / 1e9:.3g} G multiply-adds; product {rate:.3g} G/s",
    )
