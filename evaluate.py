"""Evaluate a trained network: `python evaluate.py --help` lists what can be set."""

from atlalign.cli.programs import evaluate

if __name__ == "__main__":
    evaluate()
