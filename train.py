"""Train a registration network: `python train.py --help` lists what can be set."""
