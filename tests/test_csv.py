"""CSV by ranges of rows: any text, any segments, any order of reading, the same numbers."""

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpbp.data.formats import lines
from ddpbp.data.formats.csv import CsvRows
from ddpbp.data.formats.dialect import CsvDialect, dialect_of
from ddpbp.data.options import SourceOptions
from ddpbp.data.rows import read_all, read_rows
from ddpbp.errors import DataError

WORDS = st.sampled_from(
    ["a", "b c", "", "x;y", 'a "quoted" word', "two\nlines", "ü", "7", "q\r\nr"]
)
TABLES = st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), WORDS), min_size=1, max_size=30)


def text_of(table, end: str, blank: int, quoting: Any, header: bool) -> str:
    file = io.StringIO()
    if end == "\r":  # the writer does not quote the other line end
        quoting = csv.QUOTE_ALL
    writer = csv.writer(file, lineterminator=end, quoting=quoting)
    if header:
        writer.writerow(["number", "word"])
    for i, row in enumerate(table):
        writer.writerow(row)
        file.write(end * (i % (blank + 1)))
    return file.getvalue()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    table=TABLES,
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    blank=st.integers(0, 2),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC, csv.QUOTE_ALL]),
    header=st.booleans(),
    chunk=st.sampled_from([5, 17, 64, 2**20]),
    packed=st.booleans(),
    bom=st.booleans(),
    data=st.data(),
)
def test_any_text_gives_its_rows_in_any_ranges(
    tmp_path, monkeypatch, table, end, blank, quoting, header, chunk, packed, bom, data
):
    monkeypatch.setattr(lines, "CHUNK_BYTES", chunk)
    content = text_of(table, end, blank, quoting, header).encode("utf-8-sig" if bom else "utf-8")
    path = tmp_path / "t.csv"
    path.write_bytes(gzip.compress(content) if packed else content)
    names = ("number", "word") if header else None
    rows = CsvRows(path, CsvDialect(",", names, 2, int(header)), [1])
    assert len(rows) == len(table)
    for _ in range(3):
        start = data.draw(st.integers(0, len(table)))
        stop = data.draw(st.integers(start, len(table)))
        found = read_rows(rows, slice(start, stop), np.float64)
        assert found[:, 0].tolist() == [number for number, _ in table[start:stop]]
        words = [rows.words[int(code)] for code in found[:, 1]]
        assert words == [word.strip() for _, word in table[start:stop]]


def test_a_quote_inside_a_field_is_read_as_the_parser_does(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_BYTES", 8)
    path = tmp_path / "t.csv"
    path.write_text('size,pipe\n1,5" wide\n2,"one ""and"" two\nlines"\n\n3,6"\n')
    rows = CsvRows(path, dialect_of(path, SourceOptions()), [1])
    assert len(rows) == 3
    assert read_rows(rows, slice(1, 3), np.float64)[:, 0].tolist() == [2, 3]
    assert [*rows.words] == ['one "and" two\nlines', '6"']


def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    rows = CsvRows(path, dialect_of(path, SourceOptions()))
    assert len(rows) == 2
    with path.open("a") as file:
        file.write("5,6\n")
    with pytest.raises(DataError, match=r"t\.csv: changed while it was read"):
        read_rows(CsvRowsAgain(rows), slice(0, 2), np.float64)


def CsvRowsAgain(rows: CsvRows) -> CsvRows:
    rows._file.close()
    return rows


def test_a_fault_in_a_late_segment_names_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_BYTES", 16)
    path: Path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,2\n\n" * 50 + "3,x\n" + "1,2\n" * 9)
    rows = CsvRows(path, dialect_of(path, SourceOptions()))
    with pytest.raises(DataError, match=r"line 102, column \"b\": found 'x'"):
        read_rows(rows, slice(45, 55), np.float64)
    assert read_rows(rows, slice(58, 60), np.float64).tolist() == [[1, 2], [1, 2]]


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("a  b name\n  1  2.5\t3\n\n4 -5e1   6 \n", {}),
        ("a;b;name\n1;2,5;3\n4;-5e1;6\n", {"decimal": ","}),
        ("a|b|name\n1|2.5|3\n4|-5e1|6\n", {"separator": "|"}),
        ("a\tb\tname\r\n1\t2.5\t3\r\n4\t-5e1\t6\r\n", {"separator": "tab"}),
    ],
    ids=["blanks", "decimal comma", "bar", "tab"],
)
def test_a_dialect_is_told_or_set(tmp_path, content, options):
    path = tmp_path / "t.csv"
    path.write_text(content, newline="")
    rows = CsvRows(path, dialect_of(path, SourceOptions(**options)))
    assert rows.schema.names == ("a", "b", "name")
    assert read_all(rows, np.float64).tolist() == [[1, 2.5, 3], [4, -50, 6]]


def test_another_encoding_is_set(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("größe,ort\n1,Köln\n2,Rom\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8.*data\.encoding"):
        dialect_of(path, SourceOptions())
    rows = CsvRows(path, dialect_of(path, SourceOptions(encoding="Latin-1")), [1])
    assert rows.schema.names == ("größe", "ort")
    assert read_all(rows, np.float64)[:, 0].tolist() == [1, 2]
    assert [*rows.words] == ["Köln", "Rom"]
    for name in ("utf-16", "latin-99"):
        with pytest.raises(DataError, match=r"data\.encoding = .*latin-1"):
            dialect_of(path, SourceOptions(encoding=name))


def test_zstandard_is_read_by_ranges_too(tmp_path, monkeypatch):
    zstandard = pytest.importorskip("zstandard")
    monkeypatch.setattr(lines, "CHUNK_BYTES", 64)
    path = tmp_path / "t.csv.zst"
    path.write_bytes(zstandard.compress(b"a,b\n" + b"".join(b"%d,2\n" % i for i in range(999))))
    rows = CsvRows(path, dialect_of(path, SourceOptions()))
    for start in (0, 500, 100):
        found = read_rows(rows, slice(start, start + 300), np.float64)[:, 0]
        assert found.tolist() == [*range(start, start + 300)]
