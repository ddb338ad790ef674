"""Files of strangers: text that means one thing, in bounded time; nothing but plain files is opened."""

import errno
import io
import json
import os
import re
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from vqstack.config import RunConfig, read_yaml, to_yaml
from vqstack.disk import digest, told_apart
from vqstack.errors import InputError
from vqstack.pretrained import read_header
from vqstack.reading import MAX_YAML, read_bytes, read_json, read_yaml_values


def written(folder, text):
    path = folder / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        40,
        2**63,
        0.5,
        1e-3,
        1e-05,
        1.5e300,
        True,
        False,
        None,
        "",
        "text",
        [],
        {},
        [1, [{"a": None}]],
        {"a": [1]},
    ],
    ids=str,
)
def test_json_is_read_as_json(tmp_path, value):
    """What JSON writes, and what our own YAML writes, is read back as it was, types too."""
    for text in (json.dumps({"a": value}), yaml.safe_dump({"a": value})):
        found = read_yaml_values(written(tmp_path, text))["a"]
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        *"010 08 0x1F 0b11 1_000 1:30:00 1:1 +1 .5 1. 00 -08 .inf -.inf .nan 1e999".split(),
        "9" * 41,
        "9" * 5000,
        "1" + 9999 * "_",
    ],
    ids=lambda text: text[:20],
)
def test_a_number_that_json_has_not_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match="number"):
        read_yaml_values(written(tmp_path, f"a: {text}"))
    assert read_yaml_values(written(tmp_path, f"a: '{text}'")) == {"a": text}


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "2020-01-01", "=", "<<", "0o17", "1e", "12:ab"])
def test_what_yaml_reads_into_words_stays_text(tmp_path, text):
    assert read_yaml_values(written(tmp_path, f"a: {text}\n{text}: 1")) == {"a": text, text: 1}


def bomb(depth, width):
    """Merge keys (or lists of aliases) that unfold to ``width ** depth`` values."""
    head = "a0: &a0 {x: 1}"
    return "\n".join([head] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * width)}]}}" for i in range(1, depth)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(10, 9), "anchors and aliases"),
        ("a: &a [*a]", "anchors and aliases"),
        ("a: *b", "anchors and aliases"),
        ("a: !!python/object:os.system {}", "tags"),
        ("a: ! 3", "tags"),
        ("a: 1\n'a': 2", "a stands twice"),
        ("{1: 2, '1': 3}", "1 stands twice"),
        ("? [1]\n: 2", "a key must be text"),
        ("- a\n---\n- b", "single document"),
        ("{a: " * 9999, "nested too deeply"),
        ("- " * 9999, "nested too deeply"),
        ("a: 1\n" + "# more\n" * MAX_YAML, "longer than"),
    ],
    ids=lambda value: value[:20],
)
def test_a_small_file_costs_little(tmp_path, text, message):
    began = time.process_time()
    with pytest.raises(ValueError, match=message):
        read_yaml_values(written(tmp_path, text))
    assert time.process_time() - began < 3


def test_a_strangers_run_holds_nobody_up(tmp_path):
    """The settings of a run are read by every command that names it."""
    path = written(tmp_path, bomb(10, 9))
    with pytest.raises(InputError, match=f"{path} is not YAML"):
        read_yaml(path, RunConfig)


@pytest.mark.parametrize("text", ["010", "08", "12e5", "1:30:00", "yes", "null", "~", "<<", "a: b", "é\x1b\u202e", ""])
def test_settings_come_back_as_they_were(tmp_path, text):
    config = RunConfig(data={"source": "hub", "name": "x", "revision": text})
    assert read_yaml(written(tmp_path, to_yaml(config)), RunConfig) == config


def test_a_key_twice_is_no_json(tmp_path):
    for text in ('{"a": 1, "a": 2}', '[{"b": {"a": 1, "a": 1}}]'):
        with pytest.raises(ValueError, match="a stands twice"):
            read_json(written(tmp_path, text), 100)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InputError, match=r"is a (pipe|device), no file"):
            read_yaml(type(tmp_path)(path), RunConfig)


class Failing(io.BytesIO):
    def read(self, *_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("read", [digest, partial(read_json, limit=99), partial(read_bytes, limit=99), read_header])
def test_a_read_that_fails_names_its_file(tmp_path, monkeypatch, read):
    """The system names a file that it cannot open, and not one that it could."""
    (tmp_path / "a").write_text("{}")
    monkeypatch.setattr(Path, "open", lambda *_: Failing())
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "a"))) as caught:
        read(tmp_path / "a")
    found = told_apart(caught.value)
    assert found.exit_code == 2 and str(tmp_path / "a") in str(found)
