"""A model or a code data set on the hub, with what a reader wants to know of it beside its files."""

import re
import tempfile
from pathlib import Path

from vqstack.codes import PUBLISHED, CodeDataset, holds_codes
from vqstack.errors import InputError
from vqstack.hub import parsed, upload
from vqstack.model import HierarchicalModel
from vqstack.phases import run_of
from vqstack.pretrained import CARD, CONFIG, LICENCE, WEIGHTS, find_artefact, front_matter

PICTURES, LEDGER = "pictures", "ledger.json"
ADDED = "<!-- What follows was added by vqstack push. -->"
CAPTIONS = {"prior": "Samples", "transformer": "Samples", "refiner": "Samples, refined", "renderer": "Rendered"}


def push(
    folder: Path | str, name: str, *, revision: str | None = None, private: bool = False, licence: str | None = None
) -> str:
    """Put a model or a code data set on the hub, its repository made where it is missing; the commit's address.

    Called again after it was killed, it sends what is missing. A model goes with its card: ledger, images, pictures,
    licence, how to load it. Codes go as they are, and what :class:`CodeDataset` would refuse is not sent.

    Args:
        folder: of a finished run, a released model or a code data set.
        name: OWNER/NAME.
        revision: a branch, made where it is missing; default: main.
        private: only its owner can see it. InputError where the repository is there and public.
        licence: of a model, as the hub names it; default: apache-2.0.

    Raises:
        InputError: there is nothing to push, a file is damaged, or the hub refuses.
        WriteError: the connection broke.
    """
    folder = Path(folder)
    if parsed(folder) is not None:
        raise InputError(f"{folder}: no such folder: name that of a finished run, a released model or a code data set")
    if holds_codes(folder):
        if licence is not None:
            raise InputError("licence: codes have that of their images, which their card names: leave it out")
        CodeDataset(folder).verify()
        return upload(folder, name, "dataset", PUBLISHED, ["data/*.parquet"], revision, private)
    licence = LICENCE if licence is None else licence
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}", licence):
        raise InputError(
            f"licence: {licence!r} is no name of a licence on the hub: take one as apache-2.0, mit or other"
        )
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


def _pictures(folder: Path) -> dict[str, Path]:
    """The last picture of each phase of a run, or those of a model that was pulled, by name."""
    found = sorted([*folder.glob("samples/*-[0-9]*.png"), *folder.glob(f"{PICTURES}/*.png")])
    return {re.sub(r"-\d+$", "", path.stem): path for path in found}


def _added(name: str, licence: str, pictures: list[str]) -> str:
    """The end of a model's card: pictures, how to load it, its licence."""
    lines = [ADDED]
    if pictures:
        lines += ["", "## Pictures", ""]
        lines += [f"{_caption(title)}\n\n![{title}]({PICTURES}/{title}.png)\n" for title in pictures]
    return "\n".join(
        [
            *lines,
            "",
            "## How to load it",
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
