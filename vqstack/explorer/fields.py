"""Fields of the page: numbers that are refused rather than changed, the class of a sample, files that are sent."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakMethod

from nicegui import ui
from nicegui.elements.upload_files import FileUpload

ANY = -1  # class
EXACT = 2**53 - 1  # a browser knows every whole number up to here, and rounds larger ones


class Number(ui.number):
    """A number; one that does not fit stays as it was written, with a word below it, and nothing is done with it.

    Args:
        title: what it is, shown or read aloud.
        value: at first.
        low, high: the least and the most; none: any, of whole ones up to the largest that a browser knows exactly.
        whole: whether it is a count.
        shown: whether the title stands in the field.
    """

    def __init__(
        self,
        title: str,
        value: float,
        low: float = 0,
        high: int | None = None,
        *,
        whole: bool = True,
        shown: bool = True,
    ) -> None:
        self.title, self.low, self.whole = title, low, whole
        self.high = EXACT if whole and high is None else high
        super().__init__(title if shown else None, value=value, validation=self._problem)
        self.classes("number").props("hide-bottom-space")
        if not shown:
            self.props(f'aria-label="{title}" dense')

    def _problem(self, value: float | None) -> str | None:
        fits = value is not None and self.low <= value <= (value if self.high is None else self.high)
        if fits and (not self.whole or value == int(value or 0)):
            return None
        limits = f"{self.low} … {self.high}" if self.high is not None else f"{self.low} or more"
        return f"give a {'whole ' * self.whole}number, {limits}"

    @property
    def problem(self) -> str | None:
        """What is wrong with what was written."""
        problem = self._problem(self.value)
        return problem and f"{self.title}: {problem}"

    @property
    def number(self) -> float:
        """What was written, which has no :attr:`problem`."""
        return int(self.value) if self.whole else float(self.value)


class Class(ui.select):
    """The class of a sample: one of those of the model, or any."""

    def __init__(self, classes: Mapping[int, str]) -> None:
        super().__init__({ANY: "any class", **classes}, value=ANY, label="class")
        self.set_visibility(bool(classes))

    @property
    def number(self) -> int | None:
        """Of the class that was chosen."""
        return None if self.value == ANY else int(self.value)


def table(label: str, *columns: str) -> ui.table:
    """Rows that are named in the first column, with numbers in the others; none at first."""
    about = [{"name": c, "label": c, "field": c, "align": "right" if i else "left"} for i, c in enumerate(columns)]
    return ui.table(columns=about, rows=[], row_key=columns[0]).props(f'dense aria-label="{label}"')


class Upload(ui.upload):
    """Where files are dropped.

    The server remembers the route of every upload as long as it runs, and with it this element. So the element holds
    its part of the page weakly: a closed tab would never be let go.

    Args:
        label: what is taken.
        take, refuse: methods that are told of files, and of files that are too large.
        multiple: whether several are taken at once.
        limits: see NiceGUI.
    """

    def __init__(
        self,
        label: str,
        take: Callable[[Any], object],
        refuse: Callable[[Any], object],
        *,
        multiple: bool = False,
        **limits: int,
    ) -> None:
        took = {"on_multi_upload" if multiple else "on_upload": _weakly(take)}
        super().__init__(multiple=multiple, label=label, on_rejected=_weakly(refuse), **took, **limits)  # type: ignore[arg-type]
        self.props("auto-upload").classes("wide")


def _weakly(method: Callable[[Any], object]) -> Callable[[Any], object]:
    """A call of a method as long as there is what it belongs to."""
    held = WeakMethod(method)

    def call(event: Any) -> object:
        found = held()
        return None if found is None else found(event)

    return call


@asynccontextmanager
async def sent(files: Sequence[FileUpload]) -> AsyncIterator[list[Path]]:
    """Files that a person sent, each under its own name in a folder that is removed afterwards."""
    with TemporaryDirectory() as folder:
        paths = list[Path]()
        for number, file in enumerate(files):
            name = file.name.replace("%22", '"')  # which a browser writes so in what it sends
            paths.append(Path(folder) / str(number) / Path(name).name)
            paths[-1].parent.mkdir()
            await file.save(paths[-1])
        yield paths
