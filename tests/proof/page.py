"""The table of docs/proof.md, from the figures that `make proof` kept."""

from __future__ import annotations

import json
import re

from proof.explorer import ROOT
from proof.worlds import WORLDS

RESULTS, PAGE = ROOT / "benches" / "results" / "proof.json", ROOT / "docs" / "proof.md"
_MARKED = re.compile(r"(?<=<!-- counts -->\n).*?(?=<!-- end -->)", re.DOTALL)


def _table() -> str:
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    keys = ("starts", "refused", "pairs", "edges", "ends", "wandered")
    total = dict.fromkeys(("policies", *keys), 0)
    lines = [
        "| vocabulary | tokens | policies | sequences begun | limits refused | pairs | steps | ends | steps not cut |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, counted in kept["worlds"].items():
        row = {"policies": counted["grid"] + counted["drawn"]} | {key: counted[key] for key in keys}
        total = {key: total[key] + value for key, value in row.items()}
        followed = len(WORLDS[name].pieces) - len(WORLDS[name].alike)
        lines.append(f"| {name} | {followed} | " + " | ".join(f"{value:,}" for value in row.values()) + " |")
    lines.append("| all | | " + " | ".join(f"**{value:,}**" for value in total.values()) + " |")
    machine, minutes = kept["machine"], kept["seconds"] / 60
    commit = kept["commit"][:10] + "+" * kept["commit"].endswith("+")
    lines += [
        "",
        f"By `{kept['command']}` on {kept['date']}, at {commit}, on {machine['cores']} cores of "
        f"{machine['cpu']} ({machine['system']}, load {machine['load']}): {minutes:.1f} minutes. "
        "benches/results/proof.json keeps the figures.",
    ]
    return "\n".join(lines) + "\n"


def is_current() -> bool:
    """Whether the page shows the kept figures."""
    found = _MARKED.search(PAGE.read_text(encoding="utf-8"))
    return found is not None and found[0] == _table()


def write() -> None:
    """Put the kept figures into the page."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_MARKED.sub(lambda _: _table(), text), encoding="utf-8")


if __name__ == "__main__":
    write()
