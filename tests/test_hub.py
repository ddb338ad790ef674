"""Push and pull: what comes back is what went, to the byte, and what was sent once is not sent again.

The hub is a stand-in on loopback (hub_server.py). huggingface_hub reads its address when it is imported, so what speaks
to it is a process of its own.
"""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest
import yaml
from helpers import TINY, files_of, refused, trained
from hub_server import TOKEN, Hub
from launching import program
from test_codes import write
from torch import nn

from vqstack import hub as named
from vqstack import publish
from vqstack.codes import CodeDataset
from vqstack.library import load, recipe
from vqstack.phases.run import _described

CHILD = """
import json, os
from pathlib import Path
import vqstack
from vqstack.errors import CommandError
from vqstack.pretrained import find_artefact

def refused(call):
    try:
        call()
    except CommandError as error:
        return [type(error).__name__, str(error)]

"""


@pytest.fixture(scope="module")
def hub():
    with Hub().serving() as server:
        yield server


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What all programs below have fetched."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two small runs, one of them with another seed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("one", 0), ("two", 1)):
        trained(recipe("digits", **TINY, seed=seed), folder / name)
    return folder


def child(hub, cache, code, *, wait=True, **environment):
    """Runs lines of Python as a program of a user of the hub; what they leave as ``found``."""
    environment = {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(cache),
        **environment,
    }
    found, printed = Path("found.json").absolute(), Path("printed").absolute()
    process = program(
        f"{CHILD}{dedent(code)}\nPath({str(found)!r}).write_text(json.dumps(found))\n", environment, printed
    )
    if not wait:
        return process
    process.join(100)
    assert process.exitcode == 0, printed.read_text("utf-8")
    return json.loads(found.read_text("utf-8"))


def contents(folder):
    return {name: content for name, content in files_of(folder).items() if content is not None}


def test_models_come_back_to_the_byte_and_what_is_refused_is_told_in_a_line(hub, runs, cache):
    found, said = child(
        hub,
        cache,
        f"""
        from vqstack.commands import evaluate, push
        one, two = ({str(runs)!r} + "/" + name for name in ("one", "two"))
        push.main([one, "owner/digits", "--licence", "mit"])
        push.main([two, "owner/digits", "--revision", "second/try"])
        push.main([two, "owner/own", "--private"])
        push.main([two, "owner/branched", "--revision", "try"])
        names = ["owner/digits", "owner/digits@second/try"]
        places = [str(find_artefact(Path(name))) for name in names]
        for name, run in zip(names, (one, two)):
            ours, theirs = (vqstack.load(place).sample(2, seed=3).pixels for place in (run, name))
            assert ours.equal(theirs)
        said = [
            refused(lambda: vqstack.push(one, "owner/digits", private=True)),
            refused(lambda: vqstack.push(one, "no name")),
            refused(lambda: vqstack.push(one, "owner/fresh", licence="foobar")),
            refused(lambda: vqstack.load("owner/missing")),
            refused(lambda: vqstack.load("owner/digits@missing")),
            refused(lambda: evaluate.main(["owner/digits", "--out", "evaluation"])),
            refused(lambda: evaluate.main(["owner/missing", "--out", "evaluation"])),
            refused(lambda: vqstack.load("owner/branched")),
        ]
        os.environ["HF_TOKEN"] = "hf_other"
        said += [refused(lambda: vqstack.push(one, "owner/digits")), refused(lambda: vqstack.load("owner/own"))]
        found = [places, said]
        """,
    )
    assert "(401: Unauthorized is why)" in said[-2][1] and ("model", "owner/fresh") not in hub.repositories
    repository = hub.repositories["model", "owner/digits"]
    assert hub.repositories["model", "owner/own"].private and not repository.private
    for run, branch, folder in zip(("one", "two"), ("main", "second/try"), found, strict=True):
        there, here = repository.commits[repository.branches[branch]], Path(folder)
        for name in ("config.json", "model.safetensors"):
            assert there[name] == (runs / run / "model" / name).read_bytes() == (here / name).read_bytes()
        assert there["README.md"] == (here / "README.md").read_bytes()
        assert there["ledger.json"] == (runs / run / "ledger.json").read_bytes()
        assert there["pictures/prior.png"] == max(runs.glob(f"{run}/samples/prior-*.png")).read_bytes()
    first, second = (
        repository.commits[repository.branches[branch]]["README.md"].decode() for branch in ("main", "second/try")
    )
    for wanted in (
        "---\nlibrary_name: vqstack\nlicense: apache-2.0\n",
        f"{json.loads(there['ledger.json'])['test']['bits']:.2f}",
        "## Training data",
        "![prior](pictures/prior.png)",
        'vqstack.load("owner/digits@second/try")',
    ):
        assert wanted in second
    assert "license: mit" in first and "\nmit. The images" in first

    words = [
        "public: make it private",
        "no name",
        '"license" must be',
        "owner/missing",
        "owner/digits@missing",
        "--data.source",
        "missing",
        "owner/branched@BRANCH",
    ]
    for (kind, message), word in zip(said, [*words, "hf auth login", "owner/own"], strict=True):
        assert kind == "InputError" and word in message, message


def test_a_push_that_was_killed_is_finished_with_what_is_missing(hub, cache, tmp_path):
    """Four of nine shards arrive, then the process is killed; the second push sends the other five, and each once."""
    codes, fewer = tmp_path / "codes", tmp_path / "fewer"
    images = write(codes, size=2, train=13, test=3)
    write(fewer, size=100, train=13, test=3)
    shards = {hashlib.sha256(path.read_bytes()).hexdigest() for path in codes.glob("data/*")}
    assert len(shards) == 9
    start, hub.stall = len(hub.puts), len(hub.puts) + 4
    killed = child(hub, cache, f"found = vqstack.push({str(codes)!r}, 'owner/codes')", wait=False)
    try:
        assert hub.stalled.wait(60)
        repository = hub.repositories["dataset", "owner/codes"]
        assert list(repository.commits[repository.branches["main"]]) == [".gitattributes"]
    finally:
        killed.kill()
        killed.join()
        hub.stall = None
    assert len(hub.puts) - start == 4

    hub.breaks = 1
    found = child(
        hub,
        cache,
        f"""
        import huggingface_hub
        codes, fewer = {str(codes)!r}, {str(fewer)!r}
        commits = [vqstack.push(codes, "owner/codes")]
        huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 64  # bytes that are kept of a download that breaks
        stored = vqstack.CodeDataset("owner/codes")
        maps = [one.tolist() for one in stored.read("train").codes]
        commits += [vqstack.push(codes, "owner/codes"), vqstack.push(fewer, "owner/codes")]
        found = [commits, str(stored.folder), maps]
        """,
    )
    commits, folder, maps = found
    sent = hub.puts[start:][:9]
    assert set(sent) == shards
    assert commits[0] == commits[1] != commits[2]  # where nothing has changed there is no commit
    assert contents(codes) == {name: (Path(folder) / name).read_bytes() for name in contents(codes)}
    assert maps == [level.tolist() for level in images["train"].codes]
    assert hub.breaks == 0 and len(hub.ranges) == 1  # the download that broke went on where it was
    last = repository.commits[repository.branches["main"]]  # of the nine shards none is left beside the new ones
    assert {name: last[name] for name in last if name != ".gitattributes"} == contents(fewer)


def test_offline_the_cache_serves_and_what_it_lacks_is_named(hub, runs, cache, tmp_path):
    before = len(hub.requests)
    found = child(
        hub,
        cache,
        f"""
        from vqstack.commands import generate
        generate.main(["owner/digits@second/try", "--num", "2", "--out", {str(tmp_path / "drawn")!r}])
        found = [refused(lambda: vqstack.load("owner/digits@v2")), refused(lambda: vqstack.CodeDataset("owner/none"))]
        found += [refused(lambda: vqstack.push({str(runs / "one")!r}, "owner/digits"))]
        """,
        HF_HUB_OFFLINE="1",
    )
    assert len(hub.requests) == before
    assert (tmp_path / "drawn" / "grid.png").is_file()
    for name, (kind, message) in zip(("owner/digits@v2", "owner/none", "owner/digits"), found, strict=True):
        assert kind == "InputError" and name in message and "HF_HUB_OFFLINE" in message


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name@refs/pr/1", ("owner/name", "refs/pr/1")),
        ("./owner/name", None),
        ("../name", None),
        ("/owner/name", None),
        ("name", None),
        ("owner/name/model", None),
        ("owner/here", None),
    ],
)
def test_a_folder_comes_before_a_name(tmp_path, place, name):
    (tmp_path / "owner" / "here").mkdir(parents=True)
    assert named.parsed(place) == name


def test_what_is_missing_in_a_folder_that_is_here_is_looked_for_nowhere_else(monkeypatch, tmp_path):
    """`runs/x` looks like a name of the hub; whoever means the hub can say so."""
    monkeypatch.chdir(tmp_path)
    asked = list[str]()
    monkeypatch.setattr(named, "snapshot_download", lambda name, **options: asked.append(name) or str(tmp_path))
    (tmp_path / "runs").mkdir()
    refused(lambda: named.fetched("runs/x", "model", (), "a run"), "runs/x: no such folder", "runs/x@main")
    assert asked == []
    for place in ("runs/x@main", "other/x"):
        named.fetched(place, "model", (), "a run")
    assert asked == ["runs/x", "other/x"]


@pytest.mark.parametrize(
    "name", ["digits", "/digits", "me/", "me/a/b", "me/a--b", "me/a.git", "me/digits@v3", "a@b", ""]
)
def test_only_owner_and_name_are_pushed_to(monkeypatch, name):
    monkeypatch.setattr(publish, "upload", None)
    word = "OWNER/NAME" if "@" not in name else "--revision " + name.split("@")[1]
    refused(lambda: publish.push("no/folder", name), f"{name}:", word)


NO_BRANCHES = ["", "a b", "a..b", "/a", "a/", "a//b", ".a", "a/.b", "a.lock", "a.", "a~1", "a:b", "a@{1}", "HEAD", "-a"]


@pytest.mark.parametrize("branch", [*NO_BRANCHES, "a\\b", "main", "second/try", "v1.0", "a_b-c", "Überblick"])
def test_a_branch_that_git_takes_not_is_refused_before_anything_is_made(monkeypatch, branch):
    wrong = branch in (*NO_BRANCHES, "a\\b")
    if shutil.which("git") is not None and branch:
        asked = ["git", "check-ref-format", "--branch", branch]
        assert bool(subprocess.run(asked, capture_output=True, check=False).returncode) == wrong
    monkeypatch.setattr(publish, "upload", None)
    words = ("revision", repr(branch)) if wrong else ("no such folder",)
    refused(lambda: publish.push("no/folder", "me/digits", revision=branch), *words)


def test_a_commit_is_no_branch():
    refused(lambda: publish.push("no/folder", "me/digits", revision="0123456789abcdef" * 2 + "01234567"), "commit")


def test_a_licence_that_codes_are_given_is_in_their_card(monkeypatch, tmp_path):
    """Once, in place of an earlier one; all else of the data set stays, and the checksums fit."""
    pushed, codes = [], tmp_path / "codes"
    write(codes)

    def keep(folder, *_):
        pushed.append(tmp_path / f"pushed-{len(pushed)}")
        return str(shutil.copytree(folder, pushed[-1]))

    monkeypatch.setattr(publish, "upload", keep)
    for folder, licence in ((codes, None), (codes, "mit"), (tmp_path / "pushed-1", "cc-by-4.0")):
        publish.push(folder, "owner/name", licence=licence)
    ours, same, first, second = map(contents, (codes, *pushed))
    assert ours == same
    assert b"license" not in same["README.md"] and b"licence of their images." in same["README.md"]
    for found, licence in ((first, "mit"), (second, "cc-by-4.0")):
        front, rest = (text.decode() for text in found["README.md"].removeprefix(b"---\n").split(b"---\n", 1))
        about = yaml.safe_load(front)
        assert about.pop("license") == licence
        assert about == yaml.safe_load(ours["README.md"].split(b"---\n")[1]) and about["tags"] == ["vqstack"]
        assert rest.count("licence") == 1 and f"The codes have the licence {licence}." in rest
        assert found.keys() == ours.keys()
        for line in found["SHA256SUMS"].decode().splitlines():
            checksum, name = line.split("  ")
            assert hashlib.sha256(found[name]).hexdigest() == checksum
        assert {name for name in ours if found[name] != ours[name]} == {"README.md", "SHA256SUMS"}


def test_the_card_says_what_the_model_has_and_its_headings_are_headings(runs):
    model = load(runs / "one")
    lines = model.card.splitlines()
    for number, line in enumerate(lines[1:], 1):
        if "## " in line:
            assert line.startswith("## ") and not lines[number - 1] and not lines[number + 1]
    assert "## Ledger (bits per image)" in lines
    described, refined = lines[2], [refiner.level for refiner in model.settings.every_refiner]
    assert f"in {len(model.stack)} level" in described
    assert all(str(level) in described.partition("refiner")[2] for level in refined)
    assert ("refiner" in described) == bool(refined)
    assert ("renderer" in described) == (model.renderer is not None)
    assert ("class" in described) == bool(model.classes)
    model.refiners, model.renderer, model.classes = nn.ModuleDict({"1": nn.Identity()}), nn.Identity(), 0
    model.condition = SimpleNamespace(text="an encoder")
    assert _described(model) == (
        "Discrete codes in 2 levels. A transformer models the highest map (the prior); another one corrects the "
        "decoder of level 1 (refiner). A renderer draws pictures beside the decoder of level 1. Images are "
        "conditional on texts."
    )
    model.refiners, model.renderer, model.condition = nn.ModuleDict(), None, None
    assert _described(model) == "Discrete codes in 2 levels. A transformer models the highest map (the prior)."


def test_what_cannot_be_pushed_is_refused_before_the_hub_is_asked(monkeypatch, runs, tmp_path):
    monkeypatch.setattr(publish, "upload", None)
    codes = tmp_path / "codes"
    write(codes)
    refused(lambda: publish.push("no/folder", "owner/name"), "no/folder", "no such folder")
    refused(lambda: publish.push(codes, "owner/name", licence="a\nb"), "licence")
    refused(lambda: publish.push(runs / "one", "owner/name", licence="a\nb"), "licence")
    path = next(codes.glob("data/*"))
    path.write_bytes(path.read_bytes() + b" ")
    refused(lambda: publish.push(codes, "owner/name"), path.name)


def test_a_model_that_was_pulled_is_pushed_with_one_end_of_its_card(monkeypatch, runs, tmp_path):
    cards = []

    def keep(folder, name, *_):
        cards.append((folder / "README.md").read_text())
        return name

    monkeypatch.setattr(publish, "upload", keep)
    publish.push(runs / "one", "owner/name")
    model = load(runs / "one")
    model.card = cards[0].split("---\n\n", 1)[1]
    model.save_pretrained(tmp_path / "pulled")
    publish.push(tmp_path / "pulled", "owner/other")
    assert cards[1].count(publish.ADDED) == 1 and "owner/name" not in cards[1]
    assert cards[0].split(publish.ADDED)[0] == cards[1].split(publish.ADDED)[0]


def test_the_reader_of_codes_opens_the_links_of_the_cache(tmp_path):
    """In the cache of the hub each file is a link to its content."""
    write(tmp_path / "blobs")
    for path in sorted(tmp_path.glob("blobs/**/*")):
        if path.is_file():
            link = tmp_path / "snapshot" / path.relative_to(tmp_path / "blobs")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    CodeDataset(tmp_path / "snapshot").verify()
    assert len(CodeDataset(tmp_path / "snapshot").read("train").index) == 7
