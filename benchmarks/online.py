"""Times batches that are drawn while training against the training step: `python benchmarks/online.py`.

Wanted: on the CPU less than a tenth of a step of the default local network, at 320×456 and batches of 4.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from timing import Row, in_turns, print_table

from atlalign.data.atlas import phantom_atlas
from atlalign.data.contrast import draw_contrast
from atlalign.data.dataset import RegistrationBatch
from atlalign.data.online import DEFORMATIONS, OnlineDataModule
from atlalign.losses import RegistrationLoss
from atlalign.networks import LocalUNet


def batch_maker(
    deformation: str, shape: tuple[int, int], batch_size: int, device: str
) -> Callable[[], object]:
    """Return a function that makes the next training batch on the device."""
    atlas = phantom_atlas(image_shape=shape, spacing_um=600.0)
    datamodule = OnlineDataModule(
        atlas=atlas, image_shape=shape, batch_size=batch_size, deformation=deformation, contrast=draw_contrast
    )
    datamodule.setup()
    batches = iter(datamodule.train_dataloader())

    def make() -> RegistrationBatch:
        raw = next(batches)
        return datamodule.complete({name: part.to(device) for name, part in raw.items()})

    return make


def step(network: LocalUNet, loss: RegistrationLoss, batch: RegistrationBatch) -> None:
    """Run the network on the batch, forward and backward."""
    network.zero_grad()
    loss(network(batch.reference, batch.moving), batch)["total"].backward()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="where batches are made and the network runs")
    parser.add_argument("--shape", type=int, nargs=2, default=(320, 456), metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5, help="turns for each row")
    arguments = parser.parse_args()
    shape = (arguments.shape[0], arguments.shape[1])
    network = LocalUNet().to(arguments.device)
    loss = RegistrationLoss(image="mse", dvf="vector_distance", weights={"image": 1, "dvf": 0.1})
    rows = []
    for deformation in DEFORMATIONS:
        make = batch_maker(deformation, shape, arguments.batch_size, arguments.device)
        ours, other = in_turns(make, partial(step, network, loss, make()), repeats=arguments.repeats)
        rows.append(Row(f"a batch, {deformation}", ours, "local step, no inverse", other))
    where = f"{arguments.batch_size} × {shape[0]}×{shape[1]}, {arguments.device}"
    print_table(f"Online samples: {where}, {torch.get_num_threads()} torch threads, medians", rows)


if __name__ == "__main__":
    main()
