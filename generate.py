"""Generate training data: `python generate.py --help` lists what can be set."""

import hydra
from omegaconf import DictConfig

from atlalign.errors import readable_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="generate")
def main(config: DictConfig) -> None:
    """Write the h5 data set that the configuration describes, and a figure of its samples."""
    from atlalign.synthesis.generate import generate

    generate(config)


if __name__ == "__main__":
    with readable_errors():
        main()
