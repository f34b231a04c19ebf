import tracemalloc
from dataclasses import replace

import pytest

from pipeline.ledger import BlockRecord, Ledger, Packed, Tail

RECORD = BlockRecord(0, 64, 64, 32, "ab", 2000, {0: 1500, 1: 500}, {0: 1.5}, (1, 2), 3, {"read": 0.5})


def test_a_record_survives_its_line():
    assert BlockRecord.from_line(RECORD.to_line()) == RECORD


def test_a_line_of_another_schema_is_refused():
    with pytest.raises(ValueError, match="schema 1"):
        BlockRecord.from_line('{"schema": 99}')


def test_the_ledger_is_the_union_of_its_files(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    ledger.append(RECORD)
    other = replace(RECORD, row=64)
    (tmp_path / "ledger" / "another-process.jsonl").write_text(other.to_line() + "\n")
    assert ledger.records() == {(0, 64): RECORD, (64, 64): other}


def test_a_line_that_a_killed_writer_left_unfinished_is_no_record(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append(RECORD)
    torn = replace(RECORD, row=64).to_line()[:40]
    (tmp_path / "killed.jsonl").write_text(torn)
    assert list(ledger.records()) == [(0, 64)]


def test_a_tail_takes_in_what_is_new_and_a_torn_line_once_it_is_whole(tmp_path):
    tail, path = Tail(Ledger(tmp_path)), tmp_path / "one.jsonl"
    line = replace(RECORD, row=64).to_line()
    path.write_text(RECORD.to_line() + "\n" + line[:40])
    assert list(tail.records()) == [(0, 64)]
    with path.open("a") as file:
        file.write(line[40:] + "\n")
    assert list(tail.records()) == [(0, 64), (64, 64)]
    path.unlink()
    assert len(tail.records()) == 2


def test_compacting_keeps_the_records_in_one_file(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append(RECORD)
    (tmp_path / "another.jsonl").write_text(replace(RECORD, row=64).to_line() + "\n")
    before = ledger.records()
    ledger.compact(before.values())
    assert ledger.records() == before
    assert [path.name for path in tmp_path.iterdir()] == ["merged.jsonl"]


def test_an_empty_folder_is_an_empty_ledger(tmp_path):
    assert Ledger(tmp_path / "nothing").records() == {}


def test_a_line_that_is_no_text_any_more_is_no_record(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append(RECORD)
    ledger.append(replace(RECORD, row=64))
    file = next(tmp_path.glob("*.jsonl"))
    file.write_bytes(b"\xff" + file.read_bytes()[1:])
    assert list(ledger.records()) == [(64, 64)]


def test_packed_records_are_the_records_and_take_a_few_hundred_bytes_each():
    records = {(row, 64): replace(RECORD, row=row, digest=f"{row:064x}") for row in range(0, 64000, 64)}
    tracemalloc.start()
    packed = Packed(records)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert packed == records
    assert list(packed.values()) == list(records.values())
    assert size / len(records) < 500
    del packed[0, 64]
    assert (0, 64) not in packed
    assert len(packed) == len(records) - 1
