"""Hooks of mkdocs.yml: pages that lie outside of docs/, links to them, and small repairs of what is rendered."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "tests/torture/damage.md": "damage.md",
}
"""Files of the checkout that are pages of the site, and their names there."""


def on_files(files: Any, config: Any) -> Any:
    """The files of OUTSIDE become pages, whose links are written as if they lay in docs/."""
    for source, page in OUTSIDE.items():
        text = (ROOT / source).read_text("utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to the files of OUTSIDE lead to their pages."""
    for source, page in OUTSIDE.items():
        markdown = markdown.replace(f"](../{source})", f"]({page})").replace(f"]({source})", f"]({page})")
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Inline code of tables keeps the escape of its bars; docstrings name classes with a role, as Sphinx does."""
    html = re.sub(r"<code>[^<]*</code>", lambda code: code[0].replace(r"\|", "|"), html)
    return re.sub(r":(?:class|func|meth|mod|attr):(?=<)", "", html)
