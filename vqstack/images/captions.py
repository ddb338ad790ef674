"""Words above the pictures of an overview."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

HEIGHT, SIZE = 15, 10  # of a line of captions and of its letters, pixels
PAPER, INK = 255, 0


def captioned(sheet: Image.Image, names: Sequence[str], columns: int) -> Image.Image:
    """An overview with the name of each picture above it; a row that would repeat the names above has none.

    Args:
        sheet: rows of ``columns`` pictures of one size, a line between them, as :func:`vqstack.images.grid` makes it.
        names: of the pictures, row by row.
        columns: pictures in a row, at most as many as there are.
    """
    columns = min(columns, len(names))
    rows = [list(names[start : start + columns]) for start in range(0, len(names), columns)]
    width, height = sheet.width / columns, sheet.height / len(rows)
    parts: list[Image.Image] = []
    for number, row in enumerate(rows):
        if not number or row != rows[number - 1][: len(row)]:
            parts.append(_line(row, width, sheet))
        parts.append(sheet.crop((0, round(number * height), sheet.width, round((number + 1) * height))))
    whole = Image.new(sheet.mode, (sheet.width, sum(part.height for part in parts)))
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return whole


def _line(names: Sequence[str], width: float, sheet: Image.Image) -> Image.Image:
    """Names side by side, each cut to the width of a picture."""
    line = Image.new("L", (sheet.width, HEIGHT), PAPER)
    draw, font = ImageDraw.Draw(line), ImageFont.load_default(SIZE)
    for column, name in enumerate(names):
        shown = name
        while shown and draw.textlength(shown, font) > width - 4:
            shown = shown[:-2].rstrip("…") + "…" if len(shown) > 2 else ""
        draw.text((column * width + 2, 1), shown, INK, font)
    return line.convert(sheet.mode)
