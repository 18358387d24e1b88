"""Draw the validation error against the steps of each run of a sweep.

python curves.py SWEEP OUT.svg
"""

import csv
import sys
from pathlib import Path

from matplotlib.figure import Figure
from omegaconf import OmegaConf


def main(sweep: str, out: str) -> None:
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for folder in sorted(Path(sweep).glob("[0-9]*"), key=lambda folder: int(folder.name)):
        with (folder / "csv" / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["val/vector_distance"]]
        steps = [int(row["step"]) + 1 for row in rows]
        samples = Path(OmegaConf.load(folder / "config.yaml").data.train_indexes).stem
        axes.plot(steps, [float(row["val/vector_distance"]) for row in rows], "o-", ms=4, label=samples)
    axes.axhline(float(rows[0]["val/identity/vector_distance"]), color="grey", ls="--", label="doing nothing")
    axes.set(xlabel="steps", ylabel="validation error (px)", ylim=(0, None))
    axes.legend(title="training samples", frameon=False, loc="lower left", ncols=2)
    figure.savefig(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
