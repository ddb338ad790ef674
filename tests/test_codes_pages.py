"""What a Parquet page may claim: honest files of any make-up pass, others are refused before memory is taken."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vqstack.codes.columns import ROW_GROUP, check_file, groups, write_rows
from vqstack.codes.footers import check_footers
from vqstack.codes.manifest import Contents, Shard
from vqstack.codes.pages import check_pages
from vqstack.errors import InputError

CONTENTS = Contents(map_shapes=[[4, 4], [2]], vocabularies=[70000, 4], fingerprint="x", source={}, labelled=True)
ROWS = 60


def stored(path, labels=True, rows=ROWS):
    """A file of our writer."""
    generator = np.random.default_rng(0)
    maps = [generator.integers(0, k, (rows, *s)) for s, k in zip(CONTENTS.map_shapes, (70000, 4), strict=True)]
    told = np.arange(rows) % 10 if labels else None
    write_rows(path, CONTENTS, np.arange(rows), told, [maps[0].astype(np.uint32), maps[1].astype(np.uint8)])
    return path


def number(value):
    """A whole number as Thrift writes it, zigzag, always in five bytes."""
    value = 2 * value if value >= 0 else -2 * value - 1
    return bytes([value >> 7 * i & 127 | (128 if i < 4 else 0) for i in range(5)])


def header(kind=0, size=8, inside=8, count=3, encoding=0):
    """The header of a page of values (kind 0, field 5) or of a dictionary (kind 2, field 7)."""
    start = b"\x15" + number(kind) + b"\x15" + number(size) + b"\x15" + number(inside)
    return start + (b"\x2c" if kind == 0 else b"\x4c") + b"\x15" + number(count) + b"\x15" + number(encoding) + b"\0\0"


def check(tmp_path, content, **changes):
    """The pages of a column that is a whole file."""
    (tmp_path / "pages").write_bytes(content)
    column = {"compression": "SNAPPY", "data_page_offset": 0, "has_dictionary_page": False, "num_values": 3}
    with (tmp_path / "pages").open("rb") as file:
        check_pages(file, SimpleNamespace(**{**column, "total_compressed_size": len(content), **changes}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"data_page_size": 64, "write_batch_size": 8},
        {"data_page_size": 64, "write_batch_size": 8, "dictionary_pagesize_limit": 256},  # begun with one, then without
        {"use_dictionary": False, "data_page_size": 64, "write_batch_size": 8},
        {"compression": "none"},
        {"write_statistics": False},
    ],
)
@pytest.mark.parametrize("labels", [True, False])
def test_honest_files_pass(tmp_path, options, labels):
    path = stored(tmp_path / "a.parquet", labels)
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=25, **options)
    assert pa.concat_tables(groups(path, CONTENTS)).equals(table)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compression": "zstd"}, "compressed by ZSTD"),
        ({"data_page_version": "2.0"}, "a data page of version 2"),
        ({"use_dictionary": False, "column_encoding": {"index": "DELTA_BINARY_PACKED"}}, "kind 0 and encoding 5"),
    ],
)
def test_valid_files_of_others_are_told_what_is_read(tmp_path, options, words):
    path = stored(tmp_path / "a.parquet")
    pq.write_table(pq.read_table(path), path, **options)
    with pytest.raises(InputError, match=rf"{words}.* is read with snappy or no .* written so") as refusal:
        list(groups(path, CONTENTS))
    assert "\n" not in str(refusal.value)


def test_one_or_several_pages_pass(tmp_path):
    page = header() + bytes(8)
    check(tmp_path, page)
    check(tmp_path, page * 2 + header(count=0, size=0, inside=1) + bytes(1) + page * 2, num_values=12)
    dictionary = {"has_dictionary_page": True, "dictionary_page_offset": 4, "data_page_offset": 4 + len(page)}
    check(tmp_path, b"PAR1" + header(kind=2) + bytes(8) + page, total_compressed_size=2 * len(page), **dictionary)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header(size=2**30) + bytes(8), "claims 1073741824 bytes"),
        (header(size=23 * 8) + bytes(8), "claims 184 bytes"),
        (header(size=-1) + bytes(8), "claims -1 bytes"),
        (header(inside=9) + bytes(8), "9 of them in the file"),
        (header(inside=-1) + bytes(8), "-1 of them in the file"),
        (header(count=2**30) + bytes(8), "claim 1073741824 values"),
        (header(count=-3) + bytes(8), "a page of -3 values"),
        (header(count=2) + bytes(8), "claim 2 values, not 3"),
        (header() + bytes(8) + header(size=2**30) + bytes(8), "claims 1073741824 bytes"),  # after the last value, too
        (header(encoding=5) + bytes(8), "kind 0 and encoding 5"),  # differences, whose blocks are believed
        (header(kind=1) + bytes(8), "kind 1"),
        (header(kind=2, count=2**30) + bytes(8), "dictionary of 1073741824"),
        ((header(count=1) + bytes(8) + header(kind=2) + bytes(8)), "wrong place"),
        (header()[:6] + b"\x05\x04" + header()[6:] + bytes(8), "of a form"),  # the same field once more
        (header().replace(b"\x15", b"\x16", 2) + bytes(8), "kind -1"),  # 64 bits, which the library passes over
        (b"\x15" + b"\x80" * 5 + b"\x00" + header()[6:] + bytes(8), "more than 32 bits"),
        (b"\x15\xff\xff\xff\xff\x7f" + header()[6:] + bytes(8), "more than 32 bits"),
        (b"\x1c" * 5000, "of a form"),
        (b"\x19\x00" + header() + bytes(8), "type 9"),
        (b"\x18\xff\xff\x7f" + header() + bytes(8), "does not end"),
        (b"", "claim 0 values"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pages_that_cannot_be_are_refused(tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        check(tmp_path, content)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compression": "ZSTD"}, "compressed by ZSTD"),
        ({"total_compressed_size": 2**40}, "not inside the file"),
        ({"data_page_offset": -1}, "not inside the file"),
        ({"num_values": 2}, "not 2"),
    ],
)
def test_columns_that_cannot_be_are_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        check(tmp_path, header() + bytes(8), **changes)


@pytest.mark.parametrize(("size", "count", "compression"), [(2**30, 10, "snappy"), (None, 2**28, "none")])
def test_a_claim_takes_no_memory(tmp_path, size, count, compression):
    """A dictionary that claims a GiB: its header grows, its content shrinks, all else stays where it is."""
    path = stored(tmp_path / "a.parquet")
    pq.write_table(pq.read_table(path), path, compression=compression)
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    place, end = column.dictionary_page_offset, column.data_page_offset
    inside = end - place - len(header())
    content = path.read_bytes()
    claim = header(kind=2, size=size or inside, inside=inside, count=count)
    path.write_bytes(content[:place] + claim + content[place + len(claim) :])
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read"):
        list(groups(path, CONTENTS))
    assert pa.default_memory_pool().max_memory() - before < 2**26


def test_a_group_of_rows_is_no_larger_than_ours(tmp_path):
    """A stranger's group of a billion equal rows is some bytes in the file, and gigabytes when it is read at once."""
    rows = ROW_GROUP + 1
    path = stored(tmp_path / "a.parquet", rows=rows)
    shard = Shard(split="train", number=0, of=1, start=0, rows=rows)
    check_file(path, shard, CONTENTS)
    pq.write_table(pq.read_table(path), path, row_group_size=rows)
    with pytest.raises(InputError, match=f"{ROW_GROUP} or fewer"):
        check_file(path, shard, CONTENTS)


def test_a_group_of_large_maps_has_fewer_rows(tmp_path, monkeypatch):
    """A stranger's 4096 maps of 2^17 zeros are 33 kB in a file, and 4 GiB as whole numbers of 64 bits."""
    shard = Shard(split="train", number=0, of=1, start=0, rows=ROWS)
    path = stored(tmp_path / "a.parquet")
    for sites, fits in [(16 * ROWS, True), (16 * ROWS - 1, False), (15, False)]:
        monkeypatch.setattr("vqstack.codes.columns.GROUP_SITES", sites)
        if fits:
            check_file(path, shard, CONTENTS)
        else:
            with pytest.raises(InputError, match=f"a group of {ROWS} rows of 16 values, more than {sites} together"):
                check_file(path, shard, CONTENTS)
        check_file(stored(tmp_path / "ours.parquet"), shard, CONTENTS)  # down to one row a group


def with_codec(path, codec):
    """Another number for the codec of the column ``index``, in the footer; all else stays where it is."""
    name = b"\x05index\x15"  # the end of the column's path, and the beginning of the field after it
    content = path.read_bytes()
    assert content.count(name + b"\x02") == 1  # snappy, zigzag
    path.write_bytes(content.replace(name + b"\x02", name + bytes([2 * codec])))


def test_a_footer_that_ends_the_process_is_refused(tmp_path):
    """The library knows no codec 63, and ends the whole process where it should raise."""
    missing, whole, broken = (tmp_path / name for name in ("missing", "é\n", "broken"))
    stored(whole), stored(broken)
    check_footers([missing, whole, broken])
    with_codec(broken, 63)
    for files in ([whole, broken, missing], [whole, broken, missing], [broken]):
        with pytest.raises(InputError, match=r"broken: not a Parquet file .*\(its footer breaks .*encode"):
            check_footers(files)
    broken.write_bytes(b"no Parquet file, and no harm: the reader says so itself")
    check_footers([broken, whole])


def test_footers_of_unchanged_files_are_looked_at_once(tmp_path, monkeypatch):
    path = stored(tmp_path / "a.parquet")
    check_footers([path])
    monkeypatch.setattr("vqstack.codes.footers.PROBE", tmp_path / "no program")
    check_footers([path])
    check_footers([])
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(RuntimeError, match="no program"):  # a fault of the installation is not one of the file
        check_footers([path])


def test_a_footer_that_takes_for_ever_is_refused(tmp_path, monkeypatch):
    (tmp_path / "probe.py").write_text("import time\nprint(0, flush=True)\ntime.sleep(600)\n")
    monkeypatch.setattr("vqstack.codes.footers.PROBE", tmp_path / "probe.py")
    monkeypatch.setattr("vqstack.codes.footers.PATIENCE", 1.0)
    with pytest.raises(InputError, match=r"a\.parquet: .* more than 2 seconds"):
        check_footers([stored(tmp_path / "a.parquet")])
