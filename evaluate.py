"""Evaluate a trained network: `python evaluate.py --help` lists all settings."""

from atlalign.cli.programs import evaluate

if __name__ == "__main__":
    evaluate()
