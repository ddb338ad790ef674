"""What comes from files reaches the terminal as printable characters only."""

import io
import logging
import sys
import warnings

import pytest

from vqstack.config import RunConfig, parse
from vqstack.ending import run_command
from vqstack.errors import InputError
from vqstack.terminal import Progress, lines, plain, say, warn

EVIL = "\x1b[2J\x1b]0;title\x07\u202egnp.exe\u2066\r\n\x9b31m\udc80\x00\u200b\u2028end"


def harmless(text):
    return text.isprintable() and text.isascii()


def test_nothing_of_a_name_but_what_can_be_seen(capsys):
    assert harmless(plain(EVIL)) and harmless(str(InputError(EVIL)))
    assert plain("größe 東京 100 % 😀") == "größe 東京 100 % 😀"
    say(f"one\n{plain(EVIL)}")
    warn(EVIL)
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 2 and captured.err.count("\n") == 1
    assert all(map(harmless, (captured.out + captured.err).splitlines()))
    assert captured.err.startswith("warning: ")
    assert lines("a\nb\x1b") == "a\nb\\x1b"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_whatever_a_command_prints_is_escaped(encoding, monkeypatch):
    """Messages, log lines, warnings and tracebacks of any library, on any terminal."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    for name in ("stdout", "stderr", "excepthook"):
        monkeypatch.setattr(sys, name, stream if name[:3] == "std" else sys.excepthook)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    logger = logging.Logger("library")

    def main(arguments):
        say(EVIL + "é")
        for handler in (logging.lastResort, logging.StreamHandler(sys.stderr)):  # libraries bring their own
            logger.handlers = [handler]
            try:
                raise KeyError(EVIL)
            except KeyError:
                logger.exception("library %s", EVIL)
        warnings.showwarning(UserWarning(EVIL), UserWarning, f"{EVIL}.py", 1)
        sys.excepthook(KeyError, KeyError(EVIL), None)
        raise InputError(EVIL)

    with pytest.raises(SystemExit):
        run_command(main)
    stream.flush()
    printed = stream.buffer.getvalue().decode(encoding)
    assert printed.count("31m") >= 8
    assert all(line.isprintable() for line in printed.split("\n"))


def test_help_shows_a_strangers_defaults_escaped(capsys):
    with pytest.raises(SystemExit):
        parse(RunConfig, ["--help"], RunConfig(data={"source": "hub", "name": "a\x1b[2Jb"}))
    printed = capsys.readouterr().out
    assert "data.name" in printed
    assert "\x1b[2J" not in printed


def test_where_there_is_no_terminal_progress_is_plain_lines(monkeypatch, capsys):
    """Soon after the start, then each half minute, however often it is asked; with what was said last."""
    now = 1000.0
    monkeypatch.setattr(Progress, "FIRST", 4.0)
    monkeypatch.setattr("time.monotonic", lambda: now)
    with Progress(total=200, desc="level-1\x1b[2J", unit="img") as progress:
        for step in range(200):  # a second each
            now += 1
            progress.set_postfix_str(f"loss {step}", refresh=False)
            progress.update()
    printed = capsys.readouterr().err.split("\n")
    assert printed.pop() == ""
    assert len(printed) == 7
    assert [int(line.rpartition("loss ")[2].rstrip("]")) for line in printed] == [3 + 30 * n for n in range(7)]
    assert all("/200 [" in line and line.startswith("level-1") and line.isprintable() for line in printed)


def test_progress_of_what_is_quick_or_silenced_says_nothing(capsys):
    for disable in (False, None, True):
        assert list(Progress(range(3), disable=disable)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_notebook_shows_a_bar(monkeypatch):
    """Its stream is no terminal, but draws a line anew as one does."""
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(Progress(range(3), mininterval=0)) == [0, 1, 2]
    assert stream.getvalue().count("\r") >= 3
