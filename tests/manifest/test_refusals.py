"""Every fault of a manifest ends in one line: manifest, row, value, rule, way out."""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featlib.errors import ConfigError
from featlib.manifest import BATCH_ROWS, RESERVED, read_manifest, tables
from featlib.manifest.ids import DuplicateSearch, is_media_id
from featlib.manifest.rows import MOST_COLUMNS
from featlib.manifest.tables import MOST_LEVELS, MOST_VALUE_BYTES


def refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        for _ in read_manifest([str(path)], **options):
            pass
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("value", ["a b", "-a", ".", "..", "a/b", "../x", "x" * 129, "ä", "a\0b", "a\tb", "", "a\nb"])
def test_ids(value: str, tmp_path: Path) -> None:
    rows = [{"uri": "a", "media_id": "good"}, {"uri": "b", "media_id": value}]
    text = refusal(written(tmp_path, "m.jsonl", "\n".join(map(json.dumps, rows))))
    assert "row 2: media_id" in text
    assert "leave it out" in text


@pytest.mark.parametrize("value", [1.5, True, ["a"], {"a": 1}])
def test_ids_of_other_types(value: object, tmp_path: Path) -> None:
    assert "row 1: media_id" in refusal(written(tmp_path, "m.jsonl", json.dumps({"uri": "a", "media_id": value})))


@pytest.mark.parametrize(
    ("cells", "column"),
    [
        ("-1,", "start_s"),
        ("abc,", "start_s"),
        ("nan,", "start_s"),
        ("inf,", "start_s"),
        (",0", "end_s"),
        (",-1", "end_s"),
        ("2,2", "end_s"),
        ("2,1.5", "end_s"),
        (",1e999", "end_s"),
        (",-inf", "end_s"),
    ],
)
def test_ranges(cells: str, column: str, tmp_path: Path) -> None:
    path = written(tmp_path, "m.csv", f"uri,start_s,end_s\na.mp4,,\nb.mp4,{cells}\n")
    assert f"row 2: {column}" in refusal(path)


def test_ranges_of_other_types(tmp_path: Path) -> None:
    for value in (True, [1], "1 s"):
        assert "row 1: start_s" in refusal(written(tmp_path, "m.jsonl", json.dumps({"uri": "a", "start_s": value})))
    pq.write_table(pa.table({"uri": ["a"], "end_s": [float("nan")]}), tmp_path / "m.parquet")
    assert "row 1: end_s nan" in refusal(tmp_path / "m.parquet")


@pytest.mark.parametrize(
    "uri",
    ["", None, 5, "a\0b", "a\nb", "http://h/a.mp4", "x::y", "s3://K:HIDDEN@b/a", "data:,x", "s3://", "file://h/a"],
)
def test_uris(uri: object, tmp_path: Path) -> None:
    rows = [{"uri": "a"}, {"uri": uri}]
    text = refusal(written(tmp_path, "m.jsonl", "\n".join(map(json.dumps, rows))))
    assert "row 2: uri" in text
    assert "K:HIDDEN" not in text


@pytest.mark.parametrize("size", [-1, 1.5, 1e30, 2**63])
def test_sizes(size: float, tmp_path: Path) -> None:
    path = written(tmp_path, "m.jsonl", json.dumps({"uri": "a", "size": size}))
    assert "row 1: size" in refusal(path)


def test_half_a_surrogate_pair_in_another_column_is_kept_as_an_escape(tmp_path: Path) -> None:
    path = written(tmp_path, "m.jsonl", '{"uri": "a.mp4", "note": "x\\ud800y"}')
    (batch,) = read_manifest([str(path)])
    assert json.loads(batch["manifest"][0].as_py()) == {"note": "x\ud800y"}


def test_the_column_of_uris(tmp_path: Path) -> None:
    path = written(tmp_path, "m.csv", "Path,label\na.mp4,x\n")
    assert "--uri-column Path" in refusal(path)
    assert "'Path', 'label'" in refusal(path)
    assert "name it with --uri-column" in refusal(written(tmp_path, "n.csv", "aa,bb\n1,2\n"))
    assert "'video_uri'" in refusal(path, uri_column="video_uri")
    assert "no column 'uri'" in refusal(written(tmp_path, "m.jsonl", '{"x": 1}\n'))
    assert "there twice" in refusal(written(tmp_path, "t.csv", "uri,x,x\na,1,2\n"))


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_columns(name: str, tmp_path: Path) -> None:
    assert f"column '{name}'" in refusal(written(tmp_path, "m.csv", f"uri,{name}\na,1\n"))
    later = '{"uri": "a"}\n' + json.dumps({"uri": "b", name: 1})
    assert f"column '{name}'" in refusal(written(tmp_path, "m.jsonl", later))


def test_a_second_uri_column_would_hide(tmp_path: Path) -> None:
    assert "column 'uri'" in refusal(written(tmp_path, "m.csv", "uri,video\na,b\n"), uri_column="video")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", ""),
        ("m.csv", "uri\n"),
        ("m.jsonl", "\n \n"),
        ("m.txt", "\n"),
        ("m.txt", ""),
        ("m.csv", b"uri\n\xff\xfe.mp4\n"),
        ("m.txt", b"\xff\xfe"),
        ("m.csv", "uri,x\na,1\nb\n"),
        ("m.csv", 'uri,x\n"a,1\n'),
        ("m.jsonl", '{"uri": "a"'),
        ("m.json", '[{"uri": "a"}]'),
        ("m.jsonl", "[" * 100_000),
        ("m.jsonl", b'{"uri": "\xff"}'),
        ("m.parquet", b"PAR1 this is not one PAR1"),
        ("m.parquet", b""),
        ("m.mp3", "x"),
        ("m", "x"),
    ],
)
def test_files_that_cannot_be_read(name: str, content: str | bytes, tmp_path: Path) -> None:
    assert refusal(written(tmp_path, name, content)).startswith("manifest ")


def test_parquet_without_rows_or_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"uri": pa.array([], pa.string())}), path)
    assert "has no rows" in refusal(path)
    pq.write_table(pa.table({"uri": [f"{i}.mp4" for i in range(1000)]}), path, compression="none")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refusal(path)
    path.write_bytes(whole[:200] + b"\xff" * 400 + whole[600:])
    refusal(path)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("nothing.csv", "nothing.mp4", "nothing", "empty", "*.mp4", "*.csv"):
        refusal(tmp_path / name)
    refusal("http://host/m.csv")
    with pytest.raises(ConfigError, match="no manifest"):
        list(read_manifest([]))


def test_a_bad_row_is_counted_over_batches(tmp_path: Path) -> None:
    lines = [f"{i}.mp4,{i}" for i in range(BATCH_ROWS + 10)]
    lines[-3] = "x.mp4,bad id"
    path = written(tmp_path, "m.csv", "uri,media_id\n" + "\n".join(lines))
    assert f"row {BATCH_ROWS + 8}: media_id 'bad id'" in refusal(path)


def test_duplicates_name_both_rows(tmp_path: Path) -> None:
    path = written(tmp_path, "m.csv", "uri,media_id\na,1\nb,2\nc,1\n")
    text = refusal(path)
    assert "'1'" in text
    assert "row 1" in text
    assert "row 3" in text
    again = written(tmp_path, "n.txt", "a\nb\n./a\n")
    assert "row 1 and" in refusal(again)
    assert "row 3" in refusal(again)


def test_duplicates_over_sources(tmp_path: Path) -> None:
    first, second = written(tmp_path, "a.txt", "x\ny\n"), written(tmp_path, "b.txt", "z\ny\n")
    with pytest.raises(ConfigError) as caught:
        list(read_manifest([str(first), str(second)]))
    assert f"{first}: row 2 and manifest {second}: row 2" in str(caught.value)


def test_one_file_in_several_ranges_is_no_duplicate(tmp_path: Path) -> None:
    path = written(tmp_path, "m.csv", "uri,start_s,end_s\na,,\na,0,\na,0,1\na,1,2\n")
    assert sum(batch.num_rows for batch in read_manifest([str(path)])) == 4
    path = written(tmp_path, "m.csv", "uri,start_s,end_s\na,0,1\na,-0.0,1.0\n")
    assert "row 1" in refusal(path)


@given(st.lists(st.text(max_size=2), max_size=30), st.integers(1, 5))
def test_the_search_finds_what_comparing_finds(ids: list[str], step: int) -> None:
    search = DuplicateSearch()
    for start in range(0, len(ids), step):
        search.add([i.encode("utf-8", "replace").decode() for i in ids[start : start + step]])
    plain = [i.encode("utf-8", "replace").decode() for i in ids]
    expected = next(((plain.index(i), k) for k, i in enumerate(plain) if i in plain[:k]), None)
    assert search.first_pair() == expected


@given(st.text())
def test_an_id_is_always_a_safe_file_name(text: str) -> None:
    if is_media_id(text):
        assert not set(text) & set('/\\\0:*?"<>| ')
        assert text not in (".", "..")
        assert len(text.encode()) <= 128


MEGABYTE = "x" * 1_000_000


@contextmanager
def in_memory(most_bytes: int) -> Iterator[None]:
    """What is done within may make this process larger by so much at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; see proc(5)
    before = _status_kb("VmRSS")
    yield
    assert (_status_kb("VmHWM") - before) * 1024 < most_bytes


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


LONG_VALUES = {
    "text": pa.array([MEGABYTE]),
    "large text": pa.array([MEGABYTE], pa.large_string()),
    "bytes": pa.array([MEGABYTE.encode()]),
    "struct": pa.array([{"a": MEGABYTE}]),
    "list": pa.array([[MEGABYTE]]),
    "map": pa.array([[("a", MEGABYTE)]], pa.map_(pa.string(), pa.string())),
    "fixed length": pa.array([MEGABYTE.encode()], pa.binary(len(MEGABYTE))),
    "numbers": pa.array([[7] * 125_000]),
}


@pytest.mark.parametrize("kind", LONG_VALUES)
def test_one_long_value_of_all_rows_is_refused_before_each_row_has_it(kind: str, tmp_path: Path) -> None:
    """A file of a few kilobytes, whose rows would take 200 MB, and their Python objects four times that."""
    path = tmp_path / "m.parquet"
    column = pa.chunked_array([LONG_VALUES[kind]] * 200)
    pq.write_table(pa.table({"uri": [f"{i}.mp4" for i in range(200)], "x": column}), path, compression="zstd")
    assert path.stat().st_size < 8000
    with in_memory(100 << 20):
        text = refusal(path)
    assert f"a value may have {MOST_VALUE_BYTES}" in text
    assert "x is 10000" in text or "column 'x' holds 10000" in text


@pytest.mark.parametrize("name", ["uri", "x", "split"])
def test_many_values_just_within_the_limit_are_handled_a_few_at_a_time(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    values = {"uri": [f"{i}.mp4" for i in range(2000)]} | {name: pa.array(["y" * MOST_VALUE_BYTES] * 2000)}
    pq.write_table(pa.table(values | {"start_s": list(range(2000))}), path)
    assert path.stat().st_size < 200_000
    with in_memory(150 << 20):
        num_rows = [batch.num_rows for batch in read_manifest([str(path)])]
    assert sum(num_rows) == 2000
    assert max(num_rows) < 200


def test_a_value_that_is_too_long_is_named_wherever_it_stands(tmp_path: Path) -> None:
    short, long = "y" * MOST_VALUE_BYTES, "y" * (MOST_VALUE_BYTES + 1)
    rule = f"is {len(long)} bytes long; a value may have {MOST_VALUE_BYTES}"
    table = f"uri,x\na,{short}\nb,{{}}\n"
    assert f"row 2: x {rule}" in refusal(written(tmp_path, "m.csv", table.format(long)))
    assert sum(b.num_rows for b in read_manifest([str(written(tmp_path, "m.csv", table.format(short)))])) == 2
    lines = [json.dumps({"uri": name, "x": text}) for name, text in (("a", short), ("b", long))]
    assert f"row 2: x {rule}" in refusal(written(tmp_path, "m.jsonl", "\n".join(lines)))
    assert sum(b.num_rows for b in read_manifest([str(written(tmp_path, "m.jsonl", lines[0]))])) == 1
    nested = json.dumps({"uri": "a", "x": {"y": [long]}})
    assert "row 1: x is" in refusal(written(tmp_path, "m.jsonl", nested))
    pq.write_table(pa.table({"uri": ["a", "b", long]}), tmp_path / "m.parquet", row_group_size=2)
    assert f"row 3: uri {rule}" in refusal(tmp_path / "m.parquet")


@pytest.mark.parametrize(("name", "most"), [("m.txt", MOST_VALUE_BYTES), ("m.jsonl", 4 << 20)])
def test_lines_without_an_end_are_not_read_to_it(name: str, most: int, tmp_path: Path) -> None:
    path = written(tmp_path, name, '{"uri": "a"}\n' + " " * (64 << 20))
    with in_memory(40 << 20):
        assert f"row 2: the line is longer than {most} characters" in refusal(path)


def test_long_lines_are_handled_a_few_at_a_time(tmp_path: Path) -> None:
    lines = [json.dumps({"uri": f"{i}", **{f"x{k}": "y" * 60_000 for k in range(30)}}) for i in range(12)]
    path = written(tmp_path, "m.jsonl", "\n".join(lines))
    assert [batch.num_rows for batch in read_manifest([str(path)])] == [5, 5, 2]


def test_lists_and_structs_keep_their_values_over_row_groups(tmp_path: Path) -> None:
    columns = {
        "tags": [["a", "b"], [], None, ["c"]],
        "of": [{"who": "x", "n": 1}, None, {"who": None, "n": 2}, {"who": "y", "n": None}],
        "kind": ["p", "q", "p", None],
    }
    rows = [{name: values[i] for name, values in columns.items()} for i in range(4)]
    pq.write_table(pa.table({"uri": ["a", "b", "c", "d"], **columns}), tmp_path / "m.parquet", row_group_size=2)
    found = [row for batch in read_manifest([str(tmp_path / "m.parquet")]) for row in batch["manifest"].to_pylist()]
    assert [json.loads(row) for row in found] == rows


SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    "line",
    [
        f'{{"media_id": "clip-0000001", "note": "{"x" * 80}", "uri": "s3://AKIAKEY:{SECRET}@bucket/v.mp4",}}',
        f'{{"uri": "s3:\\/\\/AKIAKEY:{SECRET}@bucket\\/v.mp4",}}',
        f'{{"uri": "https://h/v.mp4?{SECRET}",}}',
        f'{{"uri": "a.mp4", "aws_secret_access_key": "{SECRET}",}}',
        f'["{SECRET}"]',
        f'"{SECRET}',
    ],
)
def test_a_line_that_is_no_json_object_is_told_by_its_place_alone(line: str, tmp_path: Path) -> None:
    text = refusal(written(tmp_path, "m.jsonl", f'{{"uri": "a.mp4"}}\n  {line}\n'))
    assert "row 2: is not " in text
    assert SECRET[:4] not in text


def test_the_column_of_a_fault_in_json_counts_the_blanks_before_it(tmp_path: Path) -> None:
    assert "row 1: is not JSON (column 4: " in refusal(written(tmp_path, "m.jsonl", "  {x}\n"))


@pytest.mark.parametrize("where", [0, 60, 90, 130])
def test_half_a_key_is_not_shown_where_a_long_value_is_cut(where: int, tmp_path: Path) -> None:
    value = "x" * where + f" s3://AKIAKEY:{SECRET}{SECRET}@b/v.mp4"
    text = refusal(written(tmp_path, "m.jsonl", json.dumps({"uri": "a.mp4", "media_id": value})))
    assert "row 1: media_id " in text
    assert SECRET[:4] not in text


def test_what_is_nested_in_a_wrong_value_is_not_shown(tmp_path: Path) -> None:
    for value in ({"aws_secret_access_key": SECRET}, [SECRET]):
        text = refusal(written(tmp_path, "m.jsonl", json.dumps({"uri": "a.mp4", "label": value})))
        assert "row 1: label " in text
        assert SECRET[:4] not in text


def test_a_csv_row_of_too_many_columns_is_told_by_its_place_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "m.csv", f"uri\na.mp4\n{'x' * 60},s3://AKIAKEY:{SECRET}{SECRET}@b/v.mp4\n")
    with pytest.raises(ConfigError, match=r"Row #3: Expected 1 columns, got 2$") as caught:
        list(read_manifest([str(path)]))
    assert SECRET not in "".join(traceback.format_exception(caught.value)), "a notebook shows causes, too"


def test_objects_of_many_names_in_all_are_no_table_of_many_columns(tmp_path: Path) -> None:
    rows = [{"uri": f"{i}.mp4", f"camera_{i}": 1} for i in range(MOST_COLUMNS + 10)]
    path = written(tmp_path, "m.jsonl", "\n".join(map(json.dumps, rows)))
    assert sum(batch.num_rows for batch in read_manifest([str(path)])) == len(rows)


def test_decimals_of_databases_are_numbers(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "uri": ["a", "b"], "media_id": [Decimal(7), Decimal(8)], "start_s": [Decimal("1.5"), None],
        "end_s": [Decimal("2.25"), None], "size": [Decimal(1000), None], "label": [Decimal(3), Decimal("3.5")],
        "fps": [Decimal("29.97"), None],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    (batch,) = read_manifest([str(tmp_path / "m.parquet")])
    found = batch.select(["media_id", "start_s", "end_s", "size", "label"]).to_pylist()
    assert found[0] == {"media_id": "7", "start_s": 1.5, "end_s": 2.25, "size": 1000, "label": "3"}
    assert found[1] == {"media_id": "8", "start_s": None, "end_s": None, "size": None, "label": "3.5"}


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (pa.array([0, 2**62], pa.timestamp("us")), "date value out of range"),
        (pa.array([0, 253_402_300_800], pa.timestamp("s")), "date value out of range"),
        (pa.array([0, 2**31 - 1], pa.int32()).cast(pa.date32()), "magnitude"),
        (pa.array([0, 2**60 // 86_400_000 * 86_400_000], pa.int64()).cast(pa.date64()), "date value out of range"),
    ],
)
@pytest.mark.parametrize("name", ["x", "label", "uri"])
def test_a_date_that_python_has_not_is_named(column: pa.Array, what: str, name: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["a.mp4", "b.mp4"], name: column}), tmp_path / "m.parquet")
    text = refusal(tmp_path / "m.parquet")
    assert f"row 2: {name} cannot be read (" in text
    assert what in text


def test_fields_of_one_name_and_zones_that_are_nowhere_are_named(tmp_path: Path) -> None:
    twins = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    for column in (twins, pa.array([0], pa.timestamp("us", "Nowhere/Land"))):
        pq.write_table(pa.table({"uri": ["a.mp4"], "x": column}), tmp_path / "m.parquet")
        assert "row 1: x cannot be read (" in refusal(tmp_path / "m.parquet")


@pytest.mark.parametrize("depth", [101, 300, 800])
@pytest.mark.parametrize("inner", ["", "NaN"])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_what_is_nested_too_deep_is_named(depth: int, inner: str, opening: str, closing: str, tmp_path: Path) -> None:
    nested = opening * depth + (inner or "0") + closing * depth
    path = written(tmp_path, "m.jsonl", f'{{"uri": "a.mp4"}}\n{{"uri": "b.mp4", "x": {nested}}}\n')
    assert f"row 2: x is nested too deep; the limit is {MOST_LEVELS} levels" in refusal(path)


def test_what_is_nested_as_deep_as_allowed_is_kept(tmp_path: Path) -> None:
    nested = "[" * MOST_LEVELS + "NaN" + "]" * MOST_LEVELS
    (batch,) = read_manifest([str(written(tmp_path, "m.jsonl", f'{{"uri": "a.mp4", "x": {nested}}}\n'))])
    assert batch["manifest"][0].as_py() == f'{{"x": {nested.replace("NaN", "null")}}}'


def test_a_parquet_column_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    column = pa.array([1])
    for _ in range(MOST_LEVELS + 1):
        column = pa.StructArray.from_arrays([column], names=["a"])
    pq.write_table(pa.table({"uri": ["a.mp4"], "x": column}), tmp_path / "m.parquet")
    assert "too deeply nested" in refusal(tmp_path / "m.parquet")


def test_no_numbers_within_a_map_are_null(tmp_path: Path) -> None:
    column = pa.array([[("a", float("nan"))]], pa.map_(pa.string(), pa.float64()))
    pq.write_table(pa.table({"uri": ["a.mp4"], "x": column}), tmp_path / "m.parquet")
    (batch,) = read_manifest([str(tmp_path / "m.parquet")])
    assert batch["manifest"][0].as_py() == '{"x": [["a", null]]}'


def _of_many_columns(path: Path, number: int) -> Path:
    names = ["uri", *(f"c{i}" for i in range(number - 1))]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: ["a"] for name in names}), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(dict.fromkeys(("uri", *part), "a")) for part in (names[1:9], names)))
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        path.write_text(f"{delimiter.join(names)}\n{delimiter.join('a' * number)}\n")
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_the_number_of_columns_has_a_limit(ending: str, tmp_path: Path) -> None:
    path = _of_many_columns(tmp_path / f"m{ending}", MOST_COLUMNS + 1)
    assert refusal(path).endswith(f"has {MOST_COLUMNS + 1} columns; the limit is {MOST_COLUMNS}")
    path = _of_many_columns(tmp_path / f"n{ending}", MOST_COLUMNS)
    if ending == ".jsonl":
        assert "is there twice" in refusal(path), "both rows name the same media"
    else:
        assert sum(batch.num_rows for batch in read_manifest([str(path)])) == 1


def test_many_columns_within_one_are_counted(tmp_path: Path) -> None:
    twins = pa.StructArray.from_arrays([pa.array([1])] * MOST_COLUMNS, names=[f"{i}" for i in range(MOST_COLUMNS)])
    pq.write_table(pa.table({"uri": ["a.mp4"], "x": twins}), tmp_path / "m.parquet")
    assert f"the limit is {MOST_COLUMNS}" in refusal(tmp_path / "m.parquet")


def test_a_header_of_far_too_many_columns_sets_up_no_reader(tmp_path: Path) -> None:
    names = ["\ufeffuri", '"a\n,"', *(f"{i:x}" for i in range(160_000))]
    path = written(tmp_path, "m.csv", f"\n{','.join(names)}\na{',' * len(names)}\n")
    with in_memory(100 << 20):
        assert "has 160002 columns" in refusal(path)


@pytest.mark.parametrize("rows", [1, 100, 20_000])
def test_a_value_that_fills_its_row_group_is_refused_before_it_is_unpacked(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a few kilobytes, of which Arrow makes four times what the value takes."""
    if rows * MOST_VALUE_BYTES > 64 << 20:  # the limit of a value lets it pass
        monkeypatch.setattr(tables, "_MOST_UNPACKED", 32 << 20)
    column = pa.array(["x" * (64 << 20), *[None] * (rows - 1)])
    pq.write_table(pa.table({"uri": ["a.mp4"] * rows, "x": column}), tmp_path / "m.parquet", compression="zstd")
    assert (tmp_path / "m.parquet").stat().st_size < 50_000
    with in_memory(40 << 20):
        assert "column 'x' takes 6" in refusal(tmp_path / "m.parquet")
