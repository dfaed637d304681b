"""Writes the tables of what is registered into the pages that have them: `python docs/make_tables.py`, after a family has been added."""

import re
from pathlib import Path

from kerasae import models

ROOT = Path(__file__).parents[1]


def families():
    """A row per family, from the records."""
    rows = [("family", "builder", "what it is for", "paper"), ("---",) * 4]
    rows += [(record.title, f"`{record.name}`", record.purpose, record.paper) for record in models.families()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows).replace("| --- | --- | --- | --- |", "|---|---|---|---|")


# A page, and the tables in it: each stands between `<!-- table: NAME -->` and `<!-- end of table -->`.
PAGES = {"README.md": {"families": families}}


def written(page):
    """A page's text with its tables as they should be."""
    text = (ROOT / page).read_text()
    for name, table in PAGES[page].items():
        pattern = rf"(<!-- table: {name} -->\n\n)(?:\|.*\n)*(\n<!-- end of table -->)"
        text, found = re.subn(pattern, lambda match, table=table: match[1] + table() + match[2], text)
        if found != 1:
            raise ValueError(f"{page} must have one table {name!r} between its marks. Found: {found}")
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(written(page))
