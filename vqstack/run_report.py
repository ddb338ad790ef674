"""What a finished run shows to people: ``report.html``, one file that loads nothing from anywhere.

Everything in it is read from the folder of the run, so that it can be made again. Names come from people and files:
each piece of text is escaped where it enters the page, and the page forbids scripts and addresses.
"""

import base64
import html
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from vqstack.ledger import BITS, side_by_side
from vqstack.reading import read_bytes, read_json
from vqstack.terminal import lines

REPORT = "report.html"
LARGEST = 2**26  # bytes of a file that is read
COLOURS = ("#4c78a8", "#f2a03d")
PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$name</title>
<style>
body { font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }
table { border-collapse: collapse } th, td { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ccc }
th:first-child, td:first-child { text-align: left }
pre { background: #f4f4f4; padding: .8em; overflow: auto; max-height: 30em }
img { max-width: 100%; image-rendering: pixelated } svg { max-width: 100%; height: auto; font: 12px sans-serif }
</style></head><body>
<h1>$name</h1>
<h2>Ledger</h2><p>Bits per image, row by row; bars by the logarithm of 1 + bits.</p>
$ledger
$bars
<h2>Use of the codes</h2>
$usage
<h2>Training</h2><p>Bits per image over steps. What a phase trains is scored by itself: the ledger has the whole.</p>
$curves
<h2>Pictures</h2><p>The last of each phase: images above their reconstructions or variations; samples of the prior.</p>
$pictures
<h2>Use the model</h2>
<pre>$python</pre>
<pre>$shell</pre>
<h2>Settings</h2>
<pre>$settings</pre>
</body></html>
""")


def report(
    folder: Path, phases: Mapping[str, str], codebook_sizes: Sequence[int], class_names: Sequence[str], settings: str
) -> str:
    """The page of a finished run.

    Args:
        folder: of the run; holds ``ledger.json``, and ``metrics.jsonl`` and pictures of the phases that it trained.
        phases: their names, in order, and the metric that each was chosen by.
        codebook_sizes: K of each level, level 1 first.
        class_names: none, where the model knows no classes.
        settings: YAML.

    Raises:
        OSError, ValueError, KeyError: a file is missing or is no such file.
    """
    splits, names = read_json(folder / "ledger.json", LARGEST), list(phases)
    model = str(folder / "model")
    return PAGE.substitute(
        name=_text(folder.absolute().name),
        ledger=_ledger_table(splits),
        bars=_bars({split: {row["row"]: row["bits"] for row in found["rows"]} for split, found in splits.items()}),
        usage=_usage_table(splits, codebook_sizes),
        curves="\n".join(_curves(folder / "phases" / name / "metrics.jsonl", name, by) for name, by in phases.items()),
        pictures="\n".join(_picture(folder / "samples", name) for name in names),
        python=_text(
            f"import vqstack\n\nmodel = vqstack.load({model!r})\nimages = model.sample(16, seed=1).pixels\n"
            "codes = model.encode(images)  # [z_1, …, z_L]"
        ),
        shell=_text(first_command(folder, class_names, "renderer" in phases)),
        settings=_text(settings),
    )


def first_command(folder: Path, class_names: Sequence[str], renderer: bool) -> str:
    """What draws images with the model of a run, of its first class, by the decoder that is made to look well."""
    label = f" --label {shlex.quote(class_names[0])}" if class_names else ""
    decoder = " --decoder renderer" if renderer else ""
    return f"vqstack generate {shlex.quote(str(folder))} --num 16{label}{decoder} --out samples"


def _text(text: object) -> str:
    """Text as it stands in a page: no markup, nothing that does not print."""
    return html.escape(lines(text))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = [[*map(_text, row)] for row in rows]
    cells = ["".join(f"<td>{cell}</td>" for cell in row) for row in body]
    titles = "".join(f"<th>{_text(title)}</th>" for title in head)
    return f"<table><tr>{titles}</tr>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def _ledger_table(splits: Mapping[str, Any]) -> str:
    head, *rows = side_by_side(splits)
    return _table(head, [*rows, ["images", "", *(f"{found['images']:,}" for found in splits.values())]])


def _usage_table(splits: Mapping[str, Any], sizes: Sequence[int]) -> str:
    rows = []
    for number, size in enumerate(sizes, start=1):
        used = [found["usage"][f"level-{number}"] for found in splits.values()]
        rows.append([f"level-{number}", str(size), *(f"{u['share']:.0%}, {u['perplexity']:.1f}" for u in used)])
    return _table(["level", "codes", *(f"used, perplexity ({split})" for split in splits)], rows)


def _bars(splits: Mapping[str, Mapping[str, float]]) -> str:
    rows = list(next(iter(splits.values())))
    longest = max(math.log1p(bits) for found in splits.values() for bits in found.values()) or 1.0
    step, parts = 18 * len(splits) + 10, []
    for i, row in enumerate(rows):
        parts.append(f'<text x="0" y="{i * step + 14}">{_text(row)}</text>')
        for j, (split, found) in enumerate(splits.items()):
            y, width, colour = i * step + 18 * j, 420 * math.log1p(found[row]) / longest, COLOURS[j % len(COLOURS)]
            parts.append(f'<rect x="80" y="{y}" width="{width:.1f}" height="15" fill="{colour}"/>')
            parts.append(f'<text x="{width + 86:.1f}" y="{y + 12}">{found[row]:.2f} {_text(split)}</text>')
    return f'<svg width="620" height="{len(rows) * step}" role="img">{"".join(parts)}</svg>'


def _curves(path: Path, name: str, metric: str) -> str:
    """What a phase has logged of a metric; a phase that was taken from another run has logged nothing here."""
    if not path.exists():
        return f"<h3>{_text(name)}</h3><p>Not trained in this run.</p>"
    unit, title = (BITS, name) if metric == "nats" else (1.0, f"{name}: {metric}, which is no likelihood")
    logged = [json.loads(line) for line in read_bytes(path, LARGEST).decode("utf-8").splitlines()]
    curves = {
        part: [(row["step"], y * unit) for row in logged if math.isfinite(y := row.get(f"{part}/{metric}", math.nan))]
        for part in ("train", "validation")
    }
    points = [point for curve in curves.values() for point in curve]
    low, high = min(y for _, y in points), max(y for _, y in points)
    last = logged[-1]["step"]
    parts = [f'<text x="0" y="14">{high:.2f}</text><text x="0" y="150">{low:.2f}</text>']
    for i, (part, curve) in enumerate(curves.items()):
        places = [(80 + 420 * x / last, 150 - 140 * (y - low) / ((high - low) or 1.0)) for x, y in curve]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{COLOURS[i]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{COLOURS[i]}"/>' for x, y in places]
        ending = f"{part} {curve[-1][1]:.2f}" if curve else part
        parts.append(f'<text x="510" y="{14 + 18 * i}" fill="{COLOURS[i]}">{ending}</text>')
    parts.append(f'<text x="500" y="168" text-anchor="end">step {last:,}</text>')
    return f'<h3>{_text(title)}</h3><svg width="620" height="172" role="img">{"".join(parts)}</svg>'


def _picture(folder: Path, name: str) -> str:
    found = sorted(folder.glob(f"{name}-[0-9]*.png"))
    if not found:
        return ""
    data = base64.b64encode(read_bytes(found[-1], LARGEST)).decode("ascii")
    return f'<h3>{_text(found[-1].name)}</h3><img alt="{_text(name)}" src="data:image/png;base64,{data}">'
