"""Check that every link and every Python file that the repository's Markdown pages name exists. Uses no network.

It reads the pages of the top folder, docs/, examples/, benchmarks/ and newsfragments/. Files and folders of links must
exist, and ``#anchors`` must be headings. A name that ends in ``.py``, alone in backticks or with a folder, must be the
end of some file's path. It ignores links to other sites, and fenced blocks.
"""

import re
import sys
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/**/*.md", "newsfragments/*.md")
SOURCES = ("*.py", "trio_dask/**/*.py", "tests/**/*.py", "docs/*.py", "examples/*.py", "benchmarks/**/*.py")

FENCE = re.compile(r"^( *)(```+|~~~+).*?^ *\2[`~]* *$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
FILE = re.compile(r"(?<![\w./*-])[\w./-]+\.py\b")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s*<?([^\s>]+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
HTML_ANCHOR = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")
OTHER_SITE = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def blank(match: re.Match[str]) -> str:
    """Only the line ends of the match, so that line numbers stay true."""
    return "\n" * match.group().count("\n")


def anchors(text: str) -> set[str]:
    """Names of the headings, formed as code hosts form them, and of explicit anchors."""
    text = FENCE.sub(blank, text)
    found = set(HTML_ANCHOR.findall(text))
    seen: dict[str, int] = {}
    for heading in HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        repeat = seen.get(slug, 0)
        seen[slug] = repeat + 1
        found.add(f"{slug}-{repeat}" if repeat else slug)
    return found


def broken(page: Path, root: Path = ROOT) -> list[str]:
    """One line for every link of the page that leads nowhere."""
    faults: list[str] = []
    text = CODE.sub(blank, FENCE.sub(blank, page.read_text(encoding="utf-8")))
    for match in LINK.finditer(text):
        link = match[1] or match[2]
        if OTHER_SITE.match(link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        where = f"{page.relative_to(root)}:{text.count(chr(10), 0, match.start()) + 1}"
        if not target.is_relative_to(root) or not target.exists():
            faults.append(f"{where}: no such file: {link}")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text(encoding="utf-8")):
            faults.append(f"{where}: no such heading: {link}")
    return faults


def misnamed(page: Path, root: Path = ROOT) -> list[str]:
    """One line for every Python file that the page names and the tree does not have."""
    text = FENCE.sub(blank, page.read_text(encoding="utf-8"))
    files = [f"/{file.relative_to(root).as_posix()}" for pattern in SOURCES for file in root.glob(pattern)]
    return [
        f"{page.relative_to(root)}:{text.count(chr(10), 0, code.start()) + 1}: no such file: {name}"
        for code in CODE.finditer(text)
        for name in FILE.findall(code[0])
        if "/" in name or name == code[0].strip("`")
        if not any(file.endswith(f"/{name}") for file in files)
    ]


def main() -> int:
    """Print the faults of all pages; exit 1 if there are any."""
    pages = sorted({page for pattern in PAGES for page in ROOT.glob(pattern)})
    faults = [fault for page in pages for fault in (*broken(page), *misnamed(page))]
    print("\n".join([*faults, f"{len(pages)} pages, {len(faults)} faults"]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
