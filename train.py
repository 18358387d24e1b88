"""Train a registration network: `python train.py --help` lists what can be set."""

import hydra
from omegaconf import DictConfig

from atlalign.errors import readable_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Train as the configuration says; the return value is what a sweep optimises."""
    from atlalign.training.run import train

    return train(config)


if __name__ == "__main__":
    with readable_errors():
        main()
