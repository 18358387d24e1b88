"""Train a registration network: `python train.py --help` lists what can be set."""

from atlalign.cli.programs import train

if __name__ == "__main__":
    train()
