"""Run the campaign: `python -m tests.campaign [--full]`."""

import argparse
from collections import Counter
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from atlalign import __version__
from tests.campaign import inputs, processes

RESULTS = Path(__file__).with_name("RESULTS.md")
DISTURBED = ("killed", "two at once", "no space")


def main() -> None:
    """Count verdicts, and print what is bad; the full form keeps the counts so far in RESULTS.md."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="all of it, about half an hour; writes RESULTS.md"
    )
    parser.add_argument("--inputs", type=int, help="number of bad inputs of each kind")
    parser.add_argument("--runs", type=int, help="number of disturbed runs of each program")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    n_inputs = options.inputs if options.inputs is not None else 70 if options.full else 3
    n_runs = options.runs if options.runs is not None else 10 if options.full else 1
    counts: Counter[tuple[str, str]] = Counter()

    def report(kind: str, verdict: str, said: str) -> None:
        counts[kind, verdict] += 1
        if verdict in (*inputs.BAD, inputs.IN_LOG):
            print(f"\n{kind}: {verdict}\n{said}", flush=True)
        if options.full:
            RESULTS.write_text(f"{head(n_inputs, n_runs, options.seed)}\n{table(counts)}", encoding="utf-8")

    with TemporaryDirectory() as folder:
        for name in ("register", "generate", "train"):
            for how in DISTURBED:
                place = Path(folder) / f"{name} {how}".replace(" ", "_")
                processes.disturb(name, how, n_runs, place, report, options.seed)
    cases = list(inputs.cases(n_inputs, options.seed))
    inputs.run(cases, lambda case, answer: report(case.kind, answer.verdict, f"{case}\n{answer.said}"))
    print(table(counts))


def head(n_inputs: int, n_runs: int, seed: int) -> str:
    """Return the text above the table."""
    command = f"python -m tests.campaign --full --inputs {n_inputs} --runs {n_runs} --seed {seed}"
    return (
        "# Counts of the campaign\n\n"
        f"`{command}`, atlalign {__version__}, {date.today().isoformat()}. "
        "*Right*: the result of the undamaged input, or of the undisturbed run. *Flagged*: another result, not "
        "passed. *Accepted*: another result of a command that has no flags, such as a table with a damaged number. "
        "*Wrong, with pass*: another result, more than 50 µm away, that is passed.\n"
    )


def table(counts: Counter[tuple[str, str]]) -> str:
    """Return the counts as a table in Markdown, one row a kind."""
    shown = [
        verdict
        for verdict in inputs.VERDICTS
        if any(v == verdict for _, v in counts) or verdict in inputs.BAD
    ]
    lines = ["| | " + " | ".join(shown) + " |", "|---|" + "---|" * len(shown)]
    kinds = dict.fromkeys(kind for kind, _ in counts)
    lines += [
        f"| {kind} | " + " | ".join(str(counts[kind, verdict]) for verdict in shown) + " |" for kind in kinds
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
