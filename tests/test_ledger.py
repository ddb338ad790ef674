"""The ledger, by hand-computed numbers."""

import json
import math
from dataclasses import replace

import pytest
import torch

from vqstack.ledger import BITS, Ledger, Row, side_by_side, table

LN2 = math.log(2)


def ledger(scale: float = 1.0) -> Ledger:
    """Two images: 3 bits of label, 10 bits of prior and 35 bits of pixels each on average, times ``scale``."""
    bits = {"label": [3.0, 3.0], "prior": [8.0, 12.0], "level-1": [30.0, 40.0]}
    nats = {name: torch.tensor(values) * LN2 * scale for name, values in bits.items()}
    return Ledger.of(nats, {"label": 1, "prior": 4, "level-1": 16})


def test_bits_by_hand():
    assert pytest.approx(1 / LN2) == BITS
    one = ledger()
    assert one.count == 2
    assert one.rows["prior"].nats == pytest.approx(20 * LN2)
    assert one.row_bits("label") == pytest.approx(3)
    assert one.row_bits("prior") == pytest.approx(10)
    assert one.row_bits("level-1") == pytest.approx(35)
    assert one.bits == pytest.approx(48)
    assert one.error == pytest.approx(7)  # 41 and 55 bits: a deviation of sqrt(98), over the root of two images
    assert one.bits_per_dim == pytest.approx(48 / 16)  # dimensions are those of the pixels, not of every row


def test_sums_are_made_in_double_precision():
    nats = torch.full((2**13,), 0.1)
    total = Ledger.of({"level-1": nats}, {"level-1": 1}).rows["level-1"].nats
    assert total == pytest.approx(2**13 * float(nats[0]), rel=1e-12)


def test_merge_equals_the_ledger_of_everything_at_once():
    dims = {"prior": 4, "level-1": 16}
    nats = {"prior": torch.rand(7), "level-1": torch.rand(7)}
    whole = Ledger.of(nats, dims)
    parts = [Ledger.of({k: v[part] for k, v in nats.items()}, dims) for part in (slice(0, 2), slice(2, 7))]
    merged = parts[0].merge(parts[1])
    assert merged.count == 7 and list(merged.rows) == ["prior", "level-1"]
    assert merged.bits == pytest.approx(whole.bits)
    assert merged.bits_per_dim == pytest.approx(whole.bits_per_dim)
    total = sum(nats.values()).numpy() * BITS
    assert merged.error == pytest.approx(total.std(ddof=1) / math.sqrt(7), rel=1e-5) == whole.error
    alone = Ledger.of({k: v[:1] for k, v in nats.items()}, dims)
    assert alone.error is None and Ledger(whole.rows, 7).merge(whole).error is None  # one image; squares not known
    assert parts[0].count == 2  # merging changes neither part


@pytest.mark.parametrize("rows", [{"level-1": Row(1.0, 4)}, {"level-1": Row(1.0, 16), "prior": Row(1.0, 4)}])
def test_merge_refuses_other_rows_and_other_dimensions(rows):
    with pytest.raises(ValueError, match="same rows"):
        Ledger({"level-1": Row(1.0, 16)}, 1).merge(Ledger(rows, 1))


def test_json_holds_means_and_its_rows_add_up():
    content = json.loads(json.dumps(ledger().to_json()))
    assert [row["row"] for row in content["rows"]] == ["label", "prior", "level-1"]
    assert [row["dims"] for row in content["rows"]] == [1, 4, 16]
    assert [row["bits"] for row in content["rows"]] == pytest.approx([3, 10, 35])
    assert [row["nats"] for row in content["rows"]] == pytest.approx([3 * LN2, 10 * LN2, 35 * LN2])
    assert sum(row["bits"] for row in content["rows"]) == pytest.approx(content["bits"])
    assert content["bits_per_dim"] == pytest.approx(3) and content["images"] == 2
    assert content["standard_error"] == pytest.approx(7)


def test_table_by_hand():
    lines = table({"train": ledger(), "test": ledger(2.0)}).splitlines()
    assert [line.split() for line in lines] == [
        ["row", "dims", "train", "test"],
        ["label", "1", "3.00", "6.00"],
        ["prior", "4", "10.00", "20.00"],
        ["level-1", "16", "35.00", "70.00"],
        ["total", "bits", "48.00", "96.00"],
        ["±", "standard", "error", "7.00", "14.00"],
        ["bits/dim", "3.0000", "6.0000"],
    ]
    assert len({len(line) for line in lines}) == 1  # columns are aligned
    padded = replace(ledger(), rows={**ledger().rows, "level-1": Row(1.0, 12.25)})  # mean numbers that are there
    assert [line[1] for line in side_by_side({"train": ledger().to_json(), "test": padded.to_json()})[1:4]] == [
        "1",
        "4",
        "16 / 12.2",
    ]
