"""Counts the sections in images of one section, whole or in parts, and of several; prints a table."""

import argparse
import time
from collections import defaultdict

from atlalign.io.intensity import tissue_of
from atlalign.recognition.counting import Seen, count_sections
from pairs import cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parity", type=int, choices=(0, 1), help="of the sections in the order of their names"
    )
    options = parser.parse_args()
    found: dict[tuple[int, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    seconds = []
    for case in cases(options.parity):
        grey = tissue_of(case.pixels).image
        start = time.process_time()
        found[case.count, case.kind][case.stain].append(count_sections(Seen.of(grey)))
        seconds.append(time.process_time() - start)
    stains = ("sections", "ish", "mixed")
    print(f"| image | sections | {' | '.join(stains)} |")
    print("|---" * (2 + len(stains)) + "|")
    for (count, kind), by_stain in found.items():
        cells = (_cell(by_stain[stain], count) for stain in stains)
        print(f"| {kind} | {count} | {' | '.join(cells)} |")
    print(f"\n{sum(seconds) / len(seconds):.3f} s of one core an image, at most {max(seconds):.2f} s")


def _cell(counts: list[int], count: int) -> str:
    """Return how many images were found to show one section, or several."""
    right = sum((found > 1) == (count > 1) for found in counts)
    return f"{right} of {len(counts)}" if counts else ""


if __name__ == "__main__":
    main()
