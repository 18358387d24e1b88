"""Evaluate a trained network: `python evaluate.py --help` lists what can be set."""

import hydra
from omegaconf import DictConfig

from atlalign.errors import readable_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Measure a checkpoint and baselines on annotated sections; write tables and a report."""
    from atlalign.evaluation.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    with readable_errors():
        main()
