"""Fields of the page: numbers that are refused rather than changed, the class of a sample, files that are sent."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from nicegui import ui
from nicegui.elements.upload_files import FileUpload

ANY = -1  # class


class Number(ui.number):
    """A number; one that does not fit stays as it was written, with a word below it, and nothing is done with it.

    Args:
        title: what it is, shown or read aloud.
        value: at first.
        low, high: the least and the most; none: any.
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
        self.title, self.low, self.high, self.whole = title, low, high, whole
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
