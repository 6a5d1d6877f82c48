"""What an audit has counted. The summaries of two shards add up to the summary of both, in any order.

Memory is bounded: records are counted, not kept; of each class the first five examples by file and line stay.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from thinkguard.doctor.files.kinds import Lost
from thinkguard.doctor.records.record import Hit
from thinkguard.errors import InputError

_VERSION: Final = 1
MAX_EXAMPLES: Final = 5
UNREADABLE, UNRECOGNISED, MISSING = "cannot be read", "of no known shape", "file missing"
LOSSES: Final[dict[Lost, str]] = {  # what an error costs -> its kind in the summary
    "record": UNREADABLE,
    "part": "part of a file cannot be read",
    "file": "file cannot be read",
    "nothing": "byte order mark",
}
_COUNTERS: Final = ("files", "shapes", "kinds", "facts", "forms", "records_hit")


class Example(NamedTuple):
    """One record of a class: where it stands, and what was seen."""

    file: str
    line: int  # 0: the file as a whole
    excerpt: str


class Summary:
    """Counts of an audit; mutable, picklable, a JSON object and back."""

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        self.settings: dict[str, Any] = dict(settings or {})  # these have to be the same in summaries that are merged
        self.records = 0  # those that could be read
        self.files: Counter[str] = Counter()  # records of each
        self.inputs: dict[str, str] = {}  # files that an audit has read to the end: digest -> name
        self.shapes: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()  # "training", "output", "tokenized"
        self.facts: Counter[str] = Counter()
        self.forms: Counter[str] = Counter()  # white space around the markers, by block
        self.records_hit: Counter[str] = Counter()  # by check
        self.hits: Counter[tuple[str, str]] = Counter()  # records by check and kind
        self.examples: dict[tuple[str, str], list[Example]] = {}
        self.lengths: dict[str, Counter[int]] = {}  # "reasoning" -> how many records by bin; see `bin_of`

    def add(
        self, file: str, *, kind: str, shape: str = "", facts: Iterable[str] = (), forms: Iterable[str] = (), num: int = 1
    ) -> None:
        """Count `num` records that are alike in all of these."""
        self.records += num
        self.files[file] += num
        self.shapes[shape] += num
        self.kinds[kind] += num
        for fact in set(facts):
            self.facts[fact] += num
        for form in forms:
            self.forms[form] += num

    def add_hits(self, file: str, line: int, hits: Iterable[Hit]) -> None:
        """Count what was found in one record; a hit of the same check and kind counts once."""
        first = {(hit.check, hit.kind): hit.excerpt for hit in reversed(list(hits))}
        for check in {check for check, _ in first}:
            self.records_hit[check] += 1
        for key, excerpt in first.items():
            self.hits[key] += 1
            self._keep(key, Example(file, line, excerpt))

    def add_error(self, file: str, line: int, kind: str, reason: str) -> None:
        """Count what could not be read."""
        self.add_hits(file, line, [Hit("file", kind, reason)])

    def add_lengths(self, name: str, lengths: Iterable[int]) -> None:
        """Count lengths into their histogram."""
        if counts := Counter(map(bin_of, lengths)):
            self.lengths.setdefault(name, Counter()).update(counts)

    def _keep(self, key: tuple[str, str], example: Example) -> None:
        kept = self.examples.setdefault(key, [])
        if len(kept) < MAX_EXAMPLES or example < kept[-1]:
            insort(kept, example)
            del kept[MAX_EXAMPLES:]

    def merge(self, other: Summary) -> None:
        """Add another shard's counts; the order of merging makes no difference.

        InputError for other settings, and for a file that both have counted.
        """
        if self.settings and other.settings:
            for name in sorted({*self.settings, *other.settings}):
                here, there = self.settings.get(name), other.settings.get(name)
                if here != there and not (name == "format" and "" in (here, there)):  # a shard may hold no markers
                    raise InputError(
                        f"summaries of different audits cannot be merged: {name} is {here!r} here and {there!r} there; "
                        "audit all shards with the same options"
                    )
        if twice := sorted(self.inputs[digest] for digest in self.inputs.keys() & other.inputs.keys()):
            more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
            raise InputError(
                f"{', '.join(twice[:3])}{more} would be counted twice, being in both summaries: give each shard once"
            )
        self.inputs |= other.inputs
        format = self.settings.get("format") or other.settings.get("format")
        self.settings = dict(self.settings or other.settings)
        if format:
            self.settings["format"] = format
        self.records += other.records
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        self.hits.update(other.hits)
        for key, examples in other.examples.items():
            for example in examples:
                self._keep(key, example)
        for name, counts in other.lengths.items():
            self.lengths.setdefault(name, Counter()).update(counts)

    def percentile(self, name: str, percent: float) -> int | None:
        """Return the length that `percent` of the records do not exceed, at most 1/16 too high; None without records."""
        counts = self.lengths.get(name)
        if not counts:
            return None
        target = counts.total() * percent / 100
        count = 0
        for index in sorted(counts):
            count += counts[index]
            if count >= target:
                break
        return edge_of(index + 1) - 1

    def as_dict(self) -> dict[str, Any]:
        """The summary as plain JSON types."""
        hits = [
            {"check": check, "kind": kind, "records": num, "examples": [list(e) for e in self.examples[check, kind]]}
            for (check, kind), num in sorted(self.hits.items())
        ]
        lengths = {name: sorted([bin, num] for bin, num in counts.items()) for name, counts in sorted(self.lengths.items())}
        counters = {name: dict(sorted(getattr(self, name).items())) for name in _COUNTERS}
        inputs = dict(sorted(self.inputs.items()))
        values = {"version": _VERSION, "settings": self.settings, "records": self.records, "inputs": inputs}
        return values | counters | {"hits": hits, "lengths": lengths}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Summary:
        """Read what `as_dict` returned. InputError names what is not as it should be."""
        if values.get("version") != _VERSION:
            found = values.get("version")
            raise InputError(f"summary of version {found!r}: this release reads version {_VERSION}; audit the shard again")
        try:
            summary = cls(values["settings"])
            summary.records = int(values["records"])
            summary.inputs = {str(digest): str(name) for digest, name in values.get("inputs", {}).items()}
            for name in _COUNTERS:
                getattr(summary, name).update({str(key): int(num) for key, num in values[name].items()})
            for hit in values["hits"]:
                key = str(hit["check"]), str(hit["kind"])
                summary.hits[key] = int(hit["records"])
                examples = [Example(str(file), int(line), str(excerpt)) for file, line, excerpt in hit["examples"]]
                summary.examples[key] = examples
            for name, counts in values["lengths"].items():
                summary.lengths[str(name)] = Counter({int(index): int(num) for index, num in counts})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not a summary of `thinkguard audit --json`: {type(error).__name__}: {error}") from None
        return summary

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Summary) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable


def bin_of(num: int) -> int:
    """Return the histogram bin of a length: exact below 32, then 16 to each power of two."""
    shift = num.bit_length() - 5 if num > 31 else 0
    return (shift << 4) + (num >> shift)


def edge_of(index: int) -> int:
    """Return the smallest length of a bin."""
    if index < 32:
        return index
    return (16 + (index & 15)) << ((index >> 4) - 1)
