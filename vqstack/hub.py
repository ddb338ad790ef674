"""Models and code data sets on the hub: their names, what is fetched, what is uploaded. huggingface_hub does both.

A name is OWNER/NAME or OWNER/NAME@REVISION, a branch, a tag or a commit. A folder of that name comes first.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from vqstack.errors import InputError, WriteError, in_one_line

Kind = Literal["model", "dataset"]
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\S+))?")
# The library below huggingface_hub that speaks to the network changes with its version; this is its error.
_NETWORK = cast(tuple[type[Exception], ...], (*HfHubHTTPError.__bases__, OSError, ValueError, RuntimeError))


def parsed(place: Path | str) -> tuple[str, str | None] | None:
    """OWNER/NAME and the revision of what a person names; None for what is there, and for what can be no such name."""
    found = _NAME.fullmatch(str(place))
    return None if found is None or os.path.lexists(place) else (found[1], found[2])


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
        InputError: there is no such folder, and the hub does not give it.
    """
    name = parsed(place)
    if name is None:
        return Path(place)
    options = {name: value for name, value in options.items() if value is not None}
    options.setdefault("revision", name[1])
    try:
        return Path(snapshot_download(name[0], repo_type=kind, allow_patterns=list(files), **options))
    except _NETWORK as error:
        offline = constants.HF_HUB_OFFLINE or options.get("local_files_only", False)
        why = "HF_HUB_OFFLINE is set, and its cache lacks it" if offline else _said(error)
        raise InputError(
            f"{place}: no such folder, and it cannot be had from the hub ({why}): give the folder of {wanted}, "
            "or OWNER/NAME of one on the hub" + "; unset HF_HUB_OFFLINE to fetch it" * offline
        ) from error


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

    Uploaded content is kept by its checksum before it is committed, so a command that was killed and is given again
    sends what is missing.

    Args:
        folder: of the files.
        name: OWNER/NAME.
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


@contextmanager
def _telling(name: str) -> Iterator[None]:
    """Around what writes to the hub: what it refuses is wrong input, everything else may go well the next time."""
    try:
        yield
    except _NETWORK as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        if 400 <= status < 500 or isinstance(error, ValueError):
            raise InputError(
                f"{name}: the hub refuses it ({_said(error)}): give OWNER/NAME of yours, and the token to write there "
                "(`hf auth login`)"
            ) from error
        raise WriteError(
            f"{name}: the upload broke ({_said(error)}): run the same command again, which sends what is missing"
        ) from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {in_one_line(error)[:200]}"
