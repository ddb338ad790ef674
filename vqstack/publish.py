"""A model or a code data set on the hub, with what a reader wants to know of it beside its files."""

import hashlib
import re
import tempfile
from pathlib import Path

from vqstack.codes import INSTALL, PUBLISHED, CodeDataset, holds_codes
from vqstack.errors import InputError
from vqstack.hub import check_branch, check_name, parsed, upload
from vqstack.model import HierarchicalModel
from vqstack.phases import run_of
from vqstack.pretrained import CARD, CONFIG, LICENCE, WEIGHTS, find_artefact, front_matter

PICTURES, LEDGER = "pictures", "ledger.json"
ADDED = "<!-- What follows was added by vqstack push. -->"
CODES_LICENCE = rb"The codes have the licence (of their images|[A-Za-z0-9.+-]+)\."  # a sentence of the card of codes
CAPTIONS = {"prior": "Samples", "transformer": "Samples", "refiner": "Samples, refined", "renderer": "Rendered"}


def push(
    folder: Path | str, name: str, *, revision: str | None = None, private: bool = False, licence: str | None = None
) -> str:
    """Put a model or a code data set on the hub, its repository made where it is missing; the commit's address.

    Called again after it was killed, it sends what is missing. A model goes with its card: ledger, images, pictures,
    licence, how to load it. Codes go as they are, but for a licence that is given; what :class:`CodeDataset` would
    refuse is not sent.

    Args:
        folder: of a finished run, a released model or a code data set.
        name: OWNER/NAME.
        revision: a branch, made where it is missing; default: main.
        private: only its owner can see it. InputError where the repository is there and public.
        licence: its name on the hub, which refuses what it does not know; default: apache-2.0 for a model, and for
            codes what their card says.

    Raises:
        InputError: there is nothing to push, a file is damaged, or the hub refuses.
        WriteError: the connection broke.
    """
    check_name(name)
    check_branch(revision)
    folder = Path(folder)
    if licence is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}", licence):
        raise InputError(
            f"licence: {licence!r} is no name of a licence on the hub: take one as apache-2.0, mit or other"
        )
    if parsed(folder) is not None:
        raise InputError(f"{folder}: no such folder: name that of a finished run, a released model or a code data set")
    if holds_codes(folder):
        CodeDataset(folder).verify()
        with tempfile.TemporaryDirectory() as made:
            if licence is not None:
                folder = _licensed(folder, Path(made), licence)
            return upload(folder, name, "dataset", PUBLISHED, ["data/*.parquet"], revision, private)
    licence = LICENCE if licence is None else licence
    model: HierarchicalModel = HierarchicalModel.from_pretrained(folder)  # as whoever pulls it will
    artefact, run = find_artefact(folder), run_of(folder)
    with tempfile.TemporaryDirectory() as made:
        aside = Path(made)
        for file in (CONFIG, WEIGHTS):
            (aside / file).symlink_to((artefact / file).resolve())
        pictures = _pictures(artefact if run is None else run)
        (aside / PICTURES).mkdir()
        for title, path in pictures.items():
            (aside / PICTURES / f"{title}.png").symlink_to(path.resolve())
        ledger = (artefact if run is None else run) / LEDGER
        if ledger.is_file():
            (aside / LEDGER).symlink_to(ledger.resolve())
        text = model.card.partition(ADDED)[0].rstrip() or "# A vqstack model"
        added = _added(name if revision is None else f"{name}@{revision}", licence, list(pictures))
        (aside / CARD).write_text(f"{front_matter(licence)}{text}\n\n{added}", encoding="utf-8")
        files = (CONFIG, WEIGHTS, CARD, LEDGER, f"{PICTURES}/*.png")
        return upload(aside, name, "model", files, [f"{PICTURES}/*.png", LEDGER], revision, private)


def _licensed(folder: Path, aside: Path, licence: str) -> Path:
    """A code data set beside which the card names a licence: links, but for the card and its checksum."""
    for pattern in PUBLISHED:
        for path in folder.glob(pattern):
            link = aside / path.relative_to(folder)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path.resolve())
    card, sums = aside / CARD, aside / "SHA256SUMS"
    text = card.read_bytes() if card.is_file() else b""
    front = re.match(rb"---\n(.*?\n)---\n", text, re.DOTALL)
    others = b"" if front is None else re.sub(rb"(?m)^license:.*\n(?:[ -].*\n)*", b"", front[1])
    rest = re.sub(CODES_LICENCE, f"The codes have the licence {licence}.".encode(), text[front.end() if front else 0 :])
    card.unlink(missing_ok=True)
    card.write_bytes(b"---\nlicense: %s\n%s---\n%s" % (licence.encode(), others, rest))
    if sums.is_file():
        listed = sums.read_text("utf-8")
        sums.unlink()
        digest = hashlib.sha256(card.read_bytes()).hexdigest()
        sums.write_text(re.sub(rf"(?m)^\S+(?=  {CARD}$)", digest, listed), "utf-8")
    return aside


def _pictures(folder: Path) -> dict[str, Path]:
    """The last picture of each phase of a run, or those of a model that was pulled, by name."""
    found = sorted([*folder.glob("samples/*-[0-9]*.png"), *folder.glob(f"{PICTURES}/*.png")])
    return {re.sub(r"-\d+$", "", path.stem): path for path in found}


def _added(name: str, licence: str, pictures: list[str]) -> str:
    """The end of a model's card: pictures, how to load it, its licence."""
    lines = [ADDED]
    if pictures:
        lines += ["", "## Pictures", ""]
        lines += ["\n\n".join(f"{_caption(title)}\n\n![{title}]({PICTURES}/{title}.png)" for title in pictures)]
    return "\n".join(
        [
            *lines,
            "",
            "## How to load it",
            "",
            INSTALL,
            "",
            "```python",
            "import vqstack",
            "",
            f'model = vqstack.load("{name}")',
            "images = model.sample(16, seed=1).pixels  # uint8 [16, c, h, w]",
            "codes = model.encode(images)  # [z_1, …, z_L]",
            "```",
            "",
            f"Every command takes the name too: `vqstack generate {name} --num 16 --out samples`.",
            "",
            "## Licence",
            "",
            f"{licence}. The images that it was trained on have a licence of their own.",
            "",
        ]
    )


def _caption(title: str) -> str:
    part, _, number = title.partition("-")
    if part == "level":
        return f"Images of the validation split, and what level {number} decodes of their codes."
    return f"{CAPTIONS.get(part, title)}."
