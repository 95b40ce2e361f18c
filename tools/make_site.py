"""Build the documentation's site into site/, without a network; exit code 1 on a broken link.

    python tools/make_site.py

The pages are docs/, README.md as the first one, CONTRIBUTING.md and others of the root, and what
tools/reference.py makes of the code. A link to any other file of the repository leads to the
published one. Zensical renders them; then every link of every HTML page is looked up.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

from reference import commands_page, functions_page

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = "zensical.toml"  # says where pages and site are, from its own folder
# Pages of the root, and the names that they have in the site.
FROM_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md",
             "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}  # fmt: skip
# A badge is a picture of someone else's, which a reader of the site would ask for.
BADGE = re.compile(r"\[!\[([^\]]*)\]\(https?:[^)]*\)\]")
LINK = re.compile(r"(\]\(|\b(?:src|href)=\")([^)\s\"#][^)\s\"]*)")


def project() -> dict[str, str]:
    """The project's URLs."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    urls: dict[str, str] = document["project"]["urls"]
    return urls


def in_site(place: str) -> str | None:
    """A file of the repository as it is called in the site, if it is there."""
    return FROM_ROOT.get(place) or (
        place.removeprefix("docs/") if place.startswith("docs/") else None
    )


def linked(page: str, text: str) -> str:
    """A page's text, its links to files of the repository as the site needs them.

    Raises ValueError for a link to what does not exist.
    """
    published = f"{project()['Homepage']}/blob/main"

    def moved(match: re.Match[str]) -> str:
        before, link = match.groups()
        if re.match(r"[a-z]+:", link):
            return match[0]
        path, anchor = urldefrag(link)
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
        if not (ROOT / place).exists():
            raise ValueError(f"{page}: {link}: no such file")
        target = in_site(place)
        if target is None:
            target = f"{published}/{place}"
        else:
            target = posixpath.relpath(target, posixpath.dirname(in_site(page) or "") or ".")
        return f"{before}{target}{'#' if anchor else ''}{anchor}"

    return LINK.sub(moved, BADGE.sub(r"[\1]", text))


def stage(folder: Path) -> None:
    """Everything that the site is made of, in one folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder)
    texts = {f"docs/{path.name}": path for path in (ROOT / "docs").glob("*.md")}
    texts |= {name: ROOT / name for name in FROM_ROOT}
    for place, path in texts.items():
        text = linked(place, path.read_text(encoding="utf-8"))
        (folder / (in_site(place) or "")).write_text(text, encoding="utf-8")
    pages = [path.read_text(encoding="utf-8") for path in texts.values()]
    (folder / "commands.md").write_text(commands_page(), encoding="utf-8")
    (folder / "functions.md").write_text(functions_page(pages), encoding="utf-8")


class _Page(HTMLParser):
    """What a page links to, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value and tag != "base":
                self.links.add(value)
            if name in ("id", "name") and value:
                self.anchors.add(value)


def broken(site: Path) -> Iterator[str]:
    """Links of a site's pages that lead nowhere in it."""
    pages = {path: _Page(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in sorted(page.links):
            target, anchor = urldefrag(link)
            if path.name == "404.html" or re.match(r"[a-z]+:|//", target):
                continue
            there = (path.parent / unquote(target)).resolve() if target else path
            there = there / "index.html" if there.is_dir() else there
            if not there.is_file():
                yield f"{path.relative_to(site)}: {link}: no such file"
            elif there in pages and unquote(anchor) not in pages[there].anchors:
                yield f"{path.relative_to(site)}: {link}: no such place on that page"


def unfetched(site: Path) -> None:
    """The script that search needs on a disk comes with the site, not from elsewhere."""
    shutil.copy(ROOT / "tools" / "make_site_worker.js", site / "assets")
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        own = posixpath.relpath(
            "assets/make_site_worker.js", path.parent.relative_to(site).as_posix()
        )
        path.write_text(text.replace("https://unpkg.com/iframe-worker/shim", own), encoding="utf-8")


def build(folder: Path) -> int:
    """The site in `folder`, and the number of its pages. Raises ValueError, CalledProcessError."""
    project = tomllib.loads((ROOT / CONFIGURATION).read_text(encoding="utf-8"))["project"]
    stage(folder / project["docs_dir"])
    program, site = Path(sys.executable).with_name("zensical"), folder / project["site_dir"]
    subprocess.run([program, "build", "--clean", "--strict"], cwd=folder, check=True)
    unfetched(site)
    if found := list(broken(site)):
        raise ValueError("\n".join(found))
    return len(list(site.rglob("*.html")))


def main() -> None:
    """Build and check."""
    try:
        print(f"{build(ROOT)} pages in site/, no broken link")
    except (ValueError, subprocess.CalledProcessError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
