"""Make the shipped network from a run of experiment=real_sections: two passes, each on the mirrored images as well.

python experiments/07-real-sections/ship.py runs/real_sections/checkpoints/best.ckpt --out coarse.safetensors

The best checkpoint of experiment=fine_pass, whose coarse network is such a file, is written as it is.
"""

import argparse
import sys
from pathlib import Path

from atlalign.errors import InputError
from atlalign.models import load_model, read_origin, save_model
from atlalign.networks import CoarseToFineNet, CorrelationPyramidNet, FinePassNet


def ship(trained: Path, out: Path) -> None:
    """Write the network of a checkpoint or model file in its shipped form; weights and origin stay unchanged."""
    network = load_model(trained)
    if isinstance(network, FinePassNet):
        save_model(network, out, origin=read_origin(trained))
        return
    if not isinstance(network, CorrelationPyramidNet):
        raise InputError(f"{trained}: expected a CorrelationPyramidNet, found a {type(network).__name__}")
    looking_twice = CorrelationPyramidNet(**{**network.hyperparameters, "mirrored": True})
    looking_twice.load_state_dict(network.state_dict())
    passes = CoarseToFineNet(looking_twice, reductions=(1, 1), shared_weights=True)
    save_model(passes, out, origin=read_origin(trained))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trained", type=Path, help="a checkpoint or a model file")
    parser.add_argument("--out", type=Path, required=True, help="the model file to write")
    options = parser.parse_args()
    try:
        ship(options.trained, options.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
