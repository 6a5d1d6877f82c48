"""Files as streams of records: every format whole and in parts, and what is broken reported while the rest goes on."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thinkguard.doctor.files import json_text
from thinkguard.doctor.files.sources import Raw, files_of, raw_records
from thinkguard.errors import InputError

pa = pytest.importorskip("pyarrow", reason="Parquet and Arrow are read by pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="Parquet and Arrow are read by pyarrow")

QUIET = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


def records(num: int) -> list[dict[str, Any]]:
    """Texts full of what a scanner could trip over."""
    return [
        {
            "id": i,
            "messages": [
                {"role": "user", "content": 'say "{[" \\ ' + "\\" * (i % 3) + "x\n" * (i % 5)},
                {"role": "assistant", "content": "<think>\n},{\n</think>\n\n" + "]}" * i},
            ],
        }
        for i in range(num)
    ]


def lines(values: Iterable[Any]) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def arrow(write: Callable[..., Any]) -> Callable[[Path, list[dict[str, Any]]], None]:
    def made(path: Path, values: list[dict[str, Any]]) -> None:
        table = pa.Table.from_pylist(values)
        with pa.OSFile(str(path), "wb") as file, write(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=9)

    return made


def zstd(path: Path, values: list[dict[str, Any]]) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(lines(values))


def text(spell: Callable[[list[dict[str, Any]]], bytes]) -> Callable[[Path, list[dict[str, Any]]], None]:
    return lambda path, values: path.write_bytes(spell(values)) and None


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "lines.jsonl": text(lines),
    "lines.json": text(lines),
    "no_last_newline.jsonl": text(lambda values: lines(values).rstrip(b"\n")),
    "crlf.jsonl": text(lambda values: lines(values).replace(b"\n", b"\r\n")),
    "array.json": text(lambda values: json.dumps(values).encode()),
    "array.jsonl": text(lambda values: json.dumps(values).encode()),
    "indented.json": text(lambda values: json.dumps(values, indent=2).encode()),
    "tabs.json": text(lambda values: json.dumps(values, indent="\t").encode()),
    "wrapped.json": text(lambda values: json.dumps({"version": 1, "x": {"data": [1]}, "data": values, "n": [{}]}).encode()),
    "wrapped_lines.json": text(lambda values: json.dumps({"train": values}, indent=1).encode()),
    "concatenated.json": text(lambda values: "\n".join(json.dumps(value, indent=2) for value in values).encode()),
    "gzip.jsonl.gz": text(lambda values: gzip.compress(lines(values))),
    "bzip.jsonl.bz2": text(lambda values: bz2.compress(lines(values))),
    "xz.json.xz": text(lambda values: lzma.compress(json.dumps(values).encode())),
    "zstd.jsonl.zst": zstd,
    "table.parquet": lambda path, values: pq.write_table(pa.Table.from_pylist(values), path, row_group_size=7),
    "one_group.parquet": lambda path, values: pq.write_table(pa.Table.from_pylist(values), path),
    "file.arrow": arrow(pa.ipc.new_file),
    "stream.arrow": arrow(pa.ipc.new_stream),
}


def read(path: Path, **options: Any) -> list[Raw]:
    return list(raw_records(path, **options))


def error_of(path: Path, **options: Any) -> tuple[int, str]:
    """The one error of a file: its line and text."""
    [raw] = [raw for raw in read(path, **options) if raw.value is None]
    return raw.line, raw.error


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("count", [1, 2, 5, 64])
def test_shards_hold_each_record_once(tmp_path: Path, name: str, count: int) -> None:
    values = records(40)
    WRITERS[name](tmp_path / name, values)
    parts = [read(tmp_path / name, shard=(index, count)) for index in range(count)]
    found = sorted((raw for part in parts for raw in part), key=lambda raw: raw.line)
    assert [raw.error for raw in found] == [""] * 40
    assert [(raw.line, raw.value) for raw in found] == list(enumerate(values, 1))
    assert all(raw.file == str(tmp_path / name) for raw in found)


@QUIET
@given(
    texts=st.lists(st.text(max_size=40), max_size=30),
    blanks=st.lists(st.sampled_from([b"", b"\n", b"  \n"]), min_size=30, max_size=30),
    count=st.integers(1, 9),
)
def test_byte_ranges_find_every_line_and_its_number(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], blanks: list[bytes], count: int
) -> None:
    data, wanted = b"", []
    for content, blank in zip(texts, blanks, strict=False):
        data += blank
        wanted.append((data.count(b"\n") + 1, content))
        data += json.dumps({"t": content}).encode() + b"\n"
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(data)
    found = [raw for index in range(count) for raw in raw_records(path, shard=(index, count)) if raw.line]
    assert [(raw.line, raw.value and raw.value["t"]) for raw in found] == wanted


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('a"\\{}[],:\n\u00e9', max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"\\{', max_size=4), inner, max_size=3),
    max_leaves=9,
)


@QUIET
@given(
    values=st.lists(st.dictionaries(st.text("xyz", max_size=3), JSON, max_size=3), max_size=8),
    indent=st.sampled_from([None, 0, 3]),
)
def test_the_scanner_agrees_with_the_parser(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(json.dumps(values, indent=indent), encoding="utf-8")
    assert [raw.value for raw in raw_records(path)] == values


@QUIET
@given(data=st.binary(max_size=200), suffix=st.sampled_from([".json", ".jsonl", ".parquet", ".arrow", ".jsonl.gz", ".txt"]))
@pytest.mark.parametrize(
    "head", [b"", b"[", b'{"data": [', b'{"a":1}\n', b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"\x1f\x8b\x08"]
)
def test_no_bytes_raise(tmp_path_factory: pytest.TempPathFactory, head: bytes, data: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("noise") / f"a{suffix}"
    path.write_bytes(head + data)
    for raw in raw_records(path):
        assert (raw.value is None) == bool(raw.error)


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_a_seam_that_comes_again_inside_a_record_misleads_nobody(tmp_path: Path, indent: int | None) -> None:
    values = [{"id": i, "turns": [{"id": 1}, {"id": 2}], "text": '}, {"id"'} for i in range(50)]
    values += [{"other": i} for i in range(50)] + [{"id": i} for i in range(50)]
    (tmp_path / "a.json").write_text(json.dumps(values, indent=indent), encoding="utf-8")
    assert [raw.value for raw in read(tmp_path / "a.json")] == values


BROKEN = {
    b'{"a": "b"': "ends before the record does",
    b"{'a': 'b'}": "Python's own notation",
    b'{"a": 1} {"a": 2}': "more than one value",
    b'{"a": NaN}': "NaN is no JSON",
    b'{"a": -Infinity}': "Infinity is no JSON",
    b'{"a": "caf\xe9"}': "byte 0xe9 at column 11 is no UTF-8",
    b'{"a": "\\ud83d x"}': "half of a surrogate pair",
    b'{"a": "b\x00"}': "NUL bytes",
    b'{"a": 1, "a": 2}': "the key 'a' stands twice",
    b'{"x": [{"q\\"": 1, "b": 0, "b": "\\\\"}]}': "the key 'b' stands twice",
    b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}": "nested deeper than 1,000 levels",
    b"[1, 2]": "a record has to be an object, this is a list",
    b'"text"': "this is a string",
    b"null": "this is null",
    b"{a: 1}": "no JSON at column 2",
}


@pytest.mark.parametrize("loads", ["orjson", "json"])
@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_line_is_reported_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, loads: str
) -> None:
    if loads == "json":
        monkeypatch.setattr(json_text, "loads", json_text.strict_loads)
    else:
        pytest.importorskip("orjson", reason="the faster of two parsers")
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 0}\n' + line + b'\n{"a": "\\ud83d\\ude00"}\n')
    first, broken, last = read(path)
    assert (first.value, last.value, last.line) == ({"a": 0}, {"a": "\U0001f600"}, 3)
    assert (broken.value, broken.line) == (None, 2)
    assert BROKEN[line] in broken.error
    assert len(broken.error) < 300


def test_an_error_shows_its_spot(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 0}\n{"messages": [tru]}\n')
    assert error_of(tmp_path / "a.jsonl") == (2, 'no JSON at column 15 (Expecting value): {"messages": [⟦tru]}⟧')


ARRAYS = {
    "an element of an array": (b'[\n  {"a": 0},\n  {"a": tru},\n  {"a": 2}\n]', [0, None, 2]),
    "an unclosed text": (b'[\n  {"a": 0},\n  {"a": "x},\n  {"a": 2}\n]', [0, None, 2]),
    "an unclosed object": (b'[\n  {"a": 0},\n  {"a": [1},\n  {"a": 2}\n]', [0, None, 2]),
    "a stray string": (b'[{"a": 0}, "x, {", 7, {"a": 2}]', [0, None, None, 2]),
    "an array cut off": (b'[{"a": 0}, {"a": ', [0, None]),
    "an array not closed": (b'[{"a": 0}, ', [0, None]),
    "an unclosed text in one line": (b'[{"a": 0}, {"a": "x}, {"a": 2}]', [0, None]),
    "something after an object": (b'{\n"a": 0}\nx', [0, None]),
}
CUT = ("an array cut off", "an array not closed", "an unclosed text in one line", "something after an object")


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_go_on_after_what_is_broken(tmp_path: Path, case: str) -> None:
    data, wanted = ARRAYS[case]
    (tmp_path / "a.json").write_bytes(data)
    found = read(tmp_path / "a.json")
    assert [raw.value and raw.value["a"] for raw in found] == wanted
    assert all(raw.error.startswith("line ") for raw in found if raw.value is None)
    assert {raw.lost for raw in found if raw.value is None} == {"part" if case in CUT else "record"}


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("empty.jsonl", b"", "is empty"),
        ("blank.json", b" \n\n", "nothing but blanks"),
        ("wide.jsonl", '{"a": 1}\n'.encode("utf-16"), "is UTF-16"),
        ("wide.json", '{"a": 1234567890}\n'.encode("utf-16-le"), "is UTF-16"),
        ("zeros.jsonl", bytes(4096), "NUL bytes"),
        ("table.csv", b"instruction,input\n", "neither JSON, JSON Lines, Parquet nor Arrow"),
        ("page.json", b"<!DOCTYPE html><html>", "a web page"),
        ("pointer.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("packed.zip", b"PK\x03\x04....", "unpack it first"),
        ("cut.parquet", b"PAR1" + bytes(50), "cannot be read as Parquet"),
        ("cut.arrow", b"ARROW1\0\0" + bytes(50), "cannot be read as Arrow"),
        ("other.arrow", b"something else", "cannot be read as Arrow"),
    ],
)
def test_a_file_that_cannot_be_read_says_so_once(tmp_path: Path, name: str, data: bytes, error: str) -> None:
    (tmp_path / name).write_bytes(data)
    line, found = error_of(tmp_path / name)
    assert (line, error in found) == (0, True), found
    assert [raw.lost for raw in read(tmp_path / name)] == ["file"]
    assert read(tmp_path / name, shard=(1, 2)) == []


def test_a_byte_order_mark_is_reported_and_read_over(tmp_path: Path) -> None:
    for name, data in {"a.jsonl": b'{"a": 1}\n{"a": 2}\n', "a.json": b'[{"a": 1}, {"a": 2}]'}.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data)
        mark, *rest = read(tmp_path / name)
        assert (mark.line, mark.value, "byte order mark" in mark.error, mark.lost) == (0, None, True, "nothing")
        assert [raw.value for raw in rest] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("shape", ["lines", "array", "text", "depth", "backslashes"])
def test_what_is_too_long_is_never_held(tmp_path: Path, shape: str) -> None:
    size, most = 16 << 20, 1 << 20
    begin, piece, end = {
        "lines": (b'{"a": "', b"x" * 1024, b'"}\n{"a": 2}\n'),
        "array": (b'{"a": [', b'"' + b"x" * 1017 + b'\\"", ', b'1]},\n{"a": 2}]'),
        "text": (b'{"a": "', b"\\n{[ ]}]" * 127 + b'\\"\\"\\"xx', b'"},\n{"a": 2}]'),
        "backslashes": (b'{"a": "', b"\\" * 1024, b'"},\n{"a": 2}]'),
        "depth": (b'{"a": ', b'{"b": [' * 128, b""),
    }[shape]
    path = tmp_path / ("a.jsonl" if shape == "lines" else "a.json")
    with path.open("wb") as file:
        file.write((b'{"a": 0}\n' if shape == "lines" else b'[{"a": 0},\n') + begin)
        for _ in range(16):
            file.write(piece * (size // 16 // len(piece)))
        file.write(end)
    tracemalloc.start()
    found = read(path, max_bytes=most)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 9 << 20
    assert found[0].value == {"a": 0}
    if shape == "depth":
        assert "nested deeper than 10,000 levels" in found[1].error
    else:
        assert [raw.line for raw in found] == [1, 2, 3]
        assert "1,048,576" in found[1].error
        assert found[2].value == {"a": 2}


def test_a_long_line_is_split_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"a": "x" * 3_000_000}, {"a": "y" * 10}, {"a": "z" * 2_500_000}]))
    for count in (1, 2, 7):
        found = [raw for index in range(count) for raw in raw_records(path, shard=(index, count))]
        assert [(raw.line, raw.value and len(raw.value["a"])) for raw in found] == [(1, 3_000_000), (2, 10), (3, 2_500_000)]


def test_a_cut_off_archive_gives_what_it_holds(tmp_path: Path) -> None:
    data = gzip.compress(lines(records(4000)), 0)
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    found = read(tmp_path / "a.jsonl.gz")
    assert found[-1].value is None
    assert "nothing can be read from here on" in found[-1].error
    (tmp_path / "b.jsonl.gz").write_bytes(data[:300] + b"garbage" * 50 + data[600:])
    assert "nothing can be read from here on" in read(tmp_path / "b.jsonl.gz")[-1].error


def test_rows_with_broken_text_cost_themselves_alone(tmp_path: Path) -> None:
    column = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    table = pa.table({"text": column})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        first, broken, last = read(tmp_path / name)
        assert (first.value, last.value) == ({"text": "good"}, {"text": "fine"})
        assert (broken.line, "this row cannot be read" in broken.error) == (2, True)


def test_a_damaged_table_goes_on_to_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(records(300)), path, row_group_size=100, compression="zstd")
    data = bytearray(path.read_bytes())
    about = pq.ParquetFile(path).metadata.row_group(1).column(2)
    data[about.data_page_offset + 20 : about.data_page_offset + 60] = bytes(40)
    path.write_bytes(data)
    found = read(path)
    assert [(raw.line, raw.lost) for raw in found if raw.error] == [(101, "part")]
    assert [raw.value["id"] for raw in found if raw.value] == [*range(100), *range(200, 300)]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_and_devices_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    assert files_of([tmp_path]) == [tmp_path / "a.jsonl"]
    assert "no regular file but a pipe" in error_of(tmp_path / "a.jsonl")[1]
    assert "no regular file" in error_of(Path("/dev/zero"))[1]


def test_folders_are_searched_for_data_and_nothing_else(tmp_path: Path) -> None:
    for name in (
        *("b.jsonl", "a/part-0.parquet", "a/part-1.json.gz", "a/UPPER.JSONL", "dataset_info.json", "tokenizer.json"),
        *(".hidden/x.jsonl", "a/.part.jsonl", "readme.md", "state.json", "__pycache__/x.json", "notes.txt"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"a": 1}\n', encoding="utf-8")
    for number in range(3000):
        (tmp_path / "a" / f"many-{number:04}.jsonl").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = files_of([tmp_path, tmp_path / "b.jsonl"])
    assert len(found) == len(set(found)) == 3004
    names = {str(path.relative_to(tmp_path)) for path in found if "many" not in path.name}
    assert names == {"b.jsonl", "a/part-0.parquet", "a/part-1.json.gz", "a/UPPER.JSONL"}


def test_what_datasets_saved_is_read_once(tmp_path: Path) -> None:
    arrow(pa.ipc.new_stream)(tmp_path / "data-00000-of-00001.arrow", records(20))
    arrow(pa.ipc.new_stream)(tmp_path / "cache-0123456789abcdef.arrow", records(20))
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"features": {}, "splits": {}}))
    [file] = files_of([tmp_path])
    assert [raw.value for raw in raw_records(file)] == records(20)


def test_paths_that_hold_no_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file or folder .*nowhere"):
        files_of([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="no data in the folder"):
        files_of([tmp_path])
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(InputError, match="counts from 0"):
        read(tmp_path / "a.jsonl", shard=(2, 2))
