"""Models and code data sets on the hub: their names, what is fetched, what is uploaded. huggingface_hub does both.

A name is OWNER/NAME or OWNER/NAME@REVISION, a branch, a tag or a commit. A folder of that name comes first. Where a
folder OWNER is here, NAME alone is missing in it, and the hub is asked for OWNER/NAME@main only.
"""

import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, cast

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, HFValidationError
from huggingface_hub.utils import get_session, hf_raise_for_status, validate_repo_id

from vqstack.errors import InputError, WriteError, in_one_line
from vqstack.paths import check_local

Kind = Literal["model", "dataset"]
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\S+))?")
# The library below huggingface_hub that speaks to the network changes with its version; this is its error.
_NETWORK = cast(tuple[type[Exception], ...], (*HfHubHTTPError.__bases__, OSError, ValueError, RuntimeError))


def parsed(place: Path | str) -> tuple[str, str | None] | None:
    """OWNER/NAME and the revision of what a person names; None for what is there, and for what can be no such name."""
    found = _NAME.fullmatch(str(place))
    return None if found is None or os.path.lexists(place) else (found[1], found[2])


def check_name(name: str) -> None:
    """InputError where it is not OWNER/NAME, as what is pushed is called; nobody is asked."""
    bare, at, revision = name.partition("@")
    if at:
        raise InputError(f"{name}: the branch of a push is given apart: name {bare}, with --revision {revision}")
    with suppress(HFValidationError):
        validate_repo_id(name)
        if "/" in name:
            return
    raise InputError(
        f"{name}: no OWNER/NAME: give the name of you or your organisation on the hub, a slash, and a name of at most "
        "96 letters, digits, '-', '_' and '.', without '--', '..' and '.git' at the end"
    )


def check_branch(name: str | None) -> None:
    """InputError where git takes no branch of this name; nobody is asked (git check-ref-format). None: main."""
    if name is None:
        return
    parts = name.split("/")
    wrong = re.search(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{", name) or name.endswith(".") or name.startswith("-")
    if wrong or name == "HEAD" or any(not x or x[0] == "." or x.endswith(".lock") for x in parts):
        raise InputError(
            f"revision: {name!r} is no name of a branch: take letters, digits, '-', '_', '.' and single '/'"
        )
    if re.fullmatch(r"[0-9a-f]{40}", name):
        raise InputError(f"revision: {name} is the name of a commit, and a push makes a new one: name a branch")


def fetched(place: Path | str, kind: Kind, files: Sequence[str], wanted: str, **options: Any) -> Path:
    """The folder that is named: itself, or the copy in the cache of what has this name on the hub.

    All files are of one commit. With ``HF_HUB_OFFLINE=1`` the copy is what was fetched last.

    Args:
        place: a folder, or a name on the hub. What is neither is left to whoever opens it.
        kind: of the hub's repository.
        files: patterns of what is fetched.
        wanted: what it should be, for the message.
        options: of ``huggingface_hub.snapshot_download``.

    Raises:
        InputError: there is no such folder, and the hub does not give it; or it is an address.
    """
    check_local(place)
    name = parsed(place)
    if name is None:
        return Path(place)
    if name[1] is None and "revision" not in options and os.path.isdir(name[0].partition("/")[0]):
        raise InputError(f"{place}: no such folder: give the folder of {wanted}; or {place}@main, if it is of the hub")
    options = {name: value for name, value in options.items() if value is not None}
    options.setdefault("revision", name[1])
    try:
        copy = Path(snapshot_download(name[0], repo_type=kind, allow_patterns=list(files), **options))
    except _NETWORK as error:
        offline = constants.HF_HUB_OFFLINE or options.get("local_files_only", False)
        why = "HF_HUB_OFFLINE is set, and its cache lacks it" if offline else _said(error)
        raise InputError(
            f"{place}: no such folder, and it cannot be had from the hub ({why}): give the folder of {wanted}, "
            "or OWNER/NAME of one on the hub" + "; unset HF_HUB_OFFLINE to fetch it" * offline
        ) from error
    if not copy.is_dir() or not any(copy.iterdir()):
        raise InputError(
            f"{place}: {options['revision'] or 'main'} of it on the hub holds nothing of {wanted}: name the branch it "
            f"was pushed to, {name[0]}@BRANCH"
        )
    return copy


def upload(
    folder: Path,
    name: str,
    kind: Kind,
    files: Sequence[str],
    stale: Sequence[str] = (),
    revision: str | None = None,
    private: bool = False,
) -> str:
    """Make the repository where it is missing, and put files there; the commit's address.

    The hub reads the card first: where it refuses that, nothing is made. Uploaded content is kept by its checksum
    before it is committed, so a command that was killed and is given again sends what is missing.

    Args:
        folder: of the files.
        name: OWNER/NAME (:func:`check_name`).
        kind: of the repository.
        files: patterns of what goes there.
        stale: patterns of what is removed there, where the folder has no such file.
        revision: a branch, made where it is missing; default: main.
        private: only its owner can see it.

    Raises:
        InputError: the hub refuses.
        WriteError: the connection broke.
    """
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{name}: HF_HUB_OFFLINE is set, and a push needs the hub: unset it")
    api = HfApi(library_name="vqstack")
    with _telling(name):
        _check_card(api, folder / "README.md", name, kind)
        api.create_repo(name, repo_type=kind, private=private or None, exist_ok=True)
        if private and not api.repo_info(name, repo_type=kind).private:
            raise InputError(f"{name} is there and public: make it private on the hub, or leave --private out")
        if revision is not None:
            api.create_branch(name, repo_type=kind, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            repo_type=kind,
            folder_path=folder,
            allow_patterns=list(files),
            delete_patterns=list(stale) or None,
            revision=revision,
            commit_message="vqstack push",
        )
    return str(commit.commit_url)


def _check_card(api: HfApi, path: Path, name: str, kind: Kind) -> None:
    """InputError where the hub refuses the front matter of a card, as for a licence that it does not know."""
    if not path.is_file():
        return
    asked = {"content": path.read_text("utf-8"), "repoType": kind}
    try:
        hf_raise_for_status(get_session().post(f"{api.endpoint}/api/validate-yaml", json=asked))
    except BadRequestError as error:
        raise InputError(
            f"{name}: the hub refuses the card ({_said(error)}): names of licences are those of "
            "https://huggingface.co/docs/hub/repositories-licenses"
        ) from error


@contextmanager
def _telling(name: str) -> Iterator[None]:
    """Around what writes to the hub: what it refuses is wrong input, everything else may go well the next time."""
    try:
        yield
    except _NETWORK as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        if (400 <= status < 500 and status not in (408, 429)) or isinstance(error, ValueError):
            raise InputError(
                f"{name}: the hub refuses it ({_said(error)}): give OWNER/NAME of yours, and the token to write there "
                "(`hf auth login`)"
            ) from error
        raise WriteError(
            f"{name}: the upload broke ({_said(error)}): run the same command again, which sends what is missing"
        ) from error


def _said(error: BaseException) -> str:
    """The status and the first sentence of what the hub answers; of other errors what they are and their first."""
    if isinstance(error, HfHubHTTPError):
        # The library puts lines of its own around what the hub says.
        said = [error.server_message or "", *str(error).splitlines()]
        text = next((line for line in said if line and "Client Error" not in line), type(error).__name__)
        what = str(error.response.status_code)
    else:
        what, text = type(error).__name__, in_one_line(error)
    first = re.split(r"\n|(?<=[.!?])\s+(?=[A-Z])", text.strip())[0]
    return f"{what}: {textwrap.shorten(first, 200, placeholder=' …').removesuffix('.')}"
