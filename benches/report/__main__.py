"""Keep what was measured, and write it into README.md, docs/benchmarks.md and the plots.

    python -m benches.report [NEW.json] [--machine NAME]

NEW.json is what `pytest benches --benchmark-json=NEW.json` wrote; parts that it does not have keep the figures of
benches/results/NAME.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benches.report import pages
from benches.report.plots import draw
from benches.report.results import RESULTS, Results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", type=Path, nargs="?", metavar="NEW.json")
    parser.add_argument("--machine", default="cpu-2-cores", metavar="NAME", help="name of the result file")
    options = parser.parse_args()
    file = RESULTS / f"{options.machine}.json"
    if options.new is not None:
        new = Results.read(options.new)
        try:
            kept = Results.read(file).with_new(new) if file.exists() else new
        except ValueError as why:
            parser.error(f"{options.new}: {why}")
        kept.write(file)
    results = Results.read(file)
    pages.write(results)
    for picture in draw(results, pages.outputs("quality"), pages.PAGE.parent / "plots"):
        print(picture.relative_to(pages.ROOT))


if __name__ == "__main__":
    main()
