"""No test sees the checkout it lies in, nor the caches, the language and the settings of the person who runs it."""

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
# A test that passes only where nothing of its surroundings comes through. The conftest is the project's own.
PROBE = """
import os
from pathlib import Path
import vqstack.images

def test_surroundings(tmp_path, in_session):
    assert not list(Path.cwd().iterdir()) and Path.cwd() == tmp_path
    assert not in_session
    assert not [name for name, value in os.environ.items() if "of-the-person" in value and name != "TMPDIR"]
    for cache in (vqstack.images.default_cache(), Path.home()):
        assert "of-the-person" not in str(cache)
"""
FIXTURE = """
import pytest
from pathlib import Path

@pytest.fixture(scope="session")
def in_session():
    return list(Path.cwd().iterdir())
"""
NAMES = ("HF_HOME", "HF_TOKEN", "VQSTACK_CACHE", "XDG_CACHE_HOME", "HOME", "LANG", "COLUMNS", "OMP_NUM_THREADS", "RANK")


def test_what_lies_around_does_not_reach_a_test(tmp_path):
    """The project's conftest beside one test, started in a folder that looks like a checkout where a demo has run."""
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    (tmp_path / "conftest.py").write_text((CHECKOUT / "tests" / "conftest.py").read_text("utf-8"), "utf-8")
    (tmp_path / "test_probe.py").write_text(PROBE + FIXTURE, "utf-8")
    out = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_probe.py"],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",  # the checkout may not be ours to write to
            **dict.fromkeys(NAMES, str(tmp_path / "of-the-person")),
        },
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert out.returncode == 0, out.stdout + out.stderr
