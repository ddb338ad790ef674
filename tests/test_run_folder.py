"""With which settings a run may go on."""

import json

import pytest

from vqstack.config import RunConfig, read_yaml
from vqstack.disk import Lock
from vqstack.errors import InputError
from vqstack.fit import FitSettings
from vqstack.run_folder import check_run_folder, claim, read_config
from vqstack.settings import differences


def config(**changes):
    return RunConfig(data={"source": "digits"}, **changes)


def test_differences():
    before = {"a": 1, "b": {"c": [1, {"d": 2}], "e": [1, 2]}, "gone": 3}
    now = {"a": 1, "b": {"c": [1, {"d": 4}, 5], "e": [1]}, "new": [6]}
    assert list(differences(before, now)) == [
        ("b.c.1.d", 2, 4),
        ("b.c.2", None, 5),
        ("b.e", [1, 2], [1]),
        ("gone", 3, None),
        ("new", None, [6]),
    ]
    assert list(differences(now, now)) == []


def test_other_settings_are_refused_with_the_difference(tmp_path):
    claim(tmp_path, config()).release()
    check_run_folder(tmp_path, config())
    with pytest.raises(InputError) as caught:
        check_run_folder(tmp_path, config(seed=3, train_prior=FitSettings(learning_rate=0.5, keep=9)))
    assert "train_prior.learning_rate: 0.001 → 0.5; seed: 0 → 3" in str(caught.value)
    assert "keep" not in str(caught.value)  # may change
    assert "\n" not in str(caught.value)


def test_what_moves_no_weight_may_change(tmp_path):
    claim(tmp_path, config()).release()
    changed = config(
        trackers=["tensorboard"],
        sample_grid=3,
        train_levels=(FitSettings(keep=5, checkpoint_every=7, checkpoint_minutes=1, max_bad_steps=2, collapse=0),),
    )
    check_run_folder(tmp_path, changed)
    claim(tmp_path, changed).release()
    assert read_yaml(tmp_path / "config.yaml", RunConfig) == changed
    (row,) = map(json.loads, (tmp_path / "config-history.jsonl").read_text().splitlines())
    assert row["override"] is False
    assert row["changes"]["sample_grid"] == [10, 3]


def test_an_override_is_recorded(tmp_path):
    claim(tmp_path, config()).release()
    assert not (tmp_path / "config-history.jsonl").exists()
    check_run_folder(tmp_path, config(seed=4), override=True)
    claim(tmp_path, config(seed=4), override=True).release()
    claim(tmp_path, config(seed=4)).release()
    (row,) = map(json.loads, (tmp_path / "config-history.jsonl").read_text().splitlines())
    assert row["override"] is True
    assert row["changes"] == {"seed": [0, 4]}


def test_one_writer(tmp_path):
    lock = Lock(tmp_path)
    with pytest.raises(InputError, match="another process is writing"):
        check_run_folder(tmp_path, config())
    lock.release()
    check_run_folder(tmp_path, config())  # killed before it wrote anything but the lock


def test_settings_are_compared_again_once_the_folder_is_locked(tmp_path):
    check_run_folder(tmp_path, config(seed=2))  # free; while this command loads, another one begins and is stopped
    claim(tmp_path, config(seed=1)).release()
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(InputError, match="seed: 1 → 2"):
        claim(tmp_path, config(seed=2))
    assert (tmp_path / "config.yaml").read_bytes() == before
    claim(tmp_path, config(seed=1)).release()  # the refused one holds no lock


def test_a_folder_that_somebody_filled_meanwhile_is_not_claimed(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(InputError, match="something else than a run"):
        claim(tmp_path, config())
    assert not (tmp_path / "config.yaml").exists()


def test_no_damage_to_the_settings_goes_unseen(tmp_path):
    """Cut at the end of a line or inside the first one, or a bit flipped: never read with defaults for what is lost."""
    claim(tmp_path, config(seed=3)).release()
    path = tmp_path / "config.yaml"
    content = path.read_bytes()
    first, ends = content.index(b"\n"), [place for place, byte in enumerate(content) if byte == ord("\n")]
    cut = [content[:length] for length in (*range(first), *ends, *(place + 1 for place in ends[:-1]))]
    flips = [(place, bit) for place in (*range(10), first, first + 1, len(content) - 1) for bit in range(8)]
    flipped = [content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :] for i, bit in flips]
    for damaged in (*cut, *flipped, content + b"seed: 4\n", content.replace(b"seed: 3", b"seed: 4")):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"config\.yaml is not what the run wrote"):
            read_config(tmp_path)
    path.write_bytes(content)
    assert read_config(tmp_path) == config(seed=3)


def test_settings_that_were_edited_are_refused_and_an_override_replaces_them(tmp_path):
    claim(tmp_path, config()).release()
    path = tmp_path / "config.yaml"
    edited = path.read_text().replace("seed: 0", "seed: 4")
    path.write_text(edited)
    for refused in (check_run_folder, claim):
        with pytest.raises(InputError, match="not what the run wrote.*--override-config.*command line") as caught:
            refused(tmp_path, config(seed=4))
        assert "\n" not in str(caught.value)
        assert path.read_text() == edited
    check_run_folder(tmp_path, config(seed=4), override=True)
    claim(tmp_path, config(seed=4), override=True).release()
    assert read_config(tmp_path) == config(seed=4)
    (row,) = map(json.loads, (tmp_path / "config-history.jsonl").read_text().splitlines())
    assert row["override"] is True
    assert "checksum" in row["changes"]["config.yaml"][0]


def test_settings_of_older_runs_have_no_checksum(tmp_path):
    claim(tmp_path, config()).release()
    path = tmp_path / "config.yaml"
    sealed = path.read_bytes()
    path.write_bytes(sealed.partition(b"\n")[2])
    assert read_config(tmp_path) == config()
    claim(tmp_path, config()).release()
    assert path.read_bytes() == sealed  # which it gets when the run goes on
    assert not (tmp_path / "config-history.jsonl").exists()
