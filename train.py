"""Train a registration network: `python train.py --help` lists all settings."""

from atlalign.cli.programs import train

if __name__ == "__main__":
    train()
