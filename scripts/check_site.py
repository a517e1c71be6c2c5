"""Checks the pages of a built site: nothing is loaded from another host, and every link to the site leads to a file.

    check_site.py FOLDER

MkDocs has checked the links of Markdown. This also sees what the theme and plain HTML add. The pages that rustdoc wrote are
targets of links, and their own links are not checked, because rustdoc does that itself.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# References that a browser loads by itself. Links are only followed by users.
LOADED = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("object", "data")}
# These `link` elements name a page and load nothing.
ONLY_NAMED = {"canonical", "prev", "next", "alternate", "edit"}


class Page(HTMLParser):
    """The references of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects what this element refers to."""
        values = dict(attrs)
        for name, value in attrs:
            if not value:
                continue
            if (tag, name) in LOADED and values.get("rel") not in ONLY_NAMED:
                self.loaded.append(value)
            elif (tag, name) == ("a", "href"):
                self.linked.append(value)


def problems(root: Path) -> list[str]:
    """Yields the problems of the site in a folder."""
    found = []
    pages = [path for path in sorted(root.rglob("*.html")) if path.relative_to(root).parts[0] != "rust"]
    if not pages:
        return [f"there is no page in {root}"]
    for path in pages:
        page = Page()
        page.feed(path.read_text(encoding="utf-8"))
        name = path.relative_to(root)
        found += [f"{name}: loads from another host: {address}" for address in page.loaded if urlsplit(address).netloc]
        for address in (*page.loaded, *page.linked):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            # An absolute path is one of the whole site, as in the page for what is not found.
            target = (
                root / unquote(parts.path).lstrip("/") if parts.path[0] == "/" else path.parent / unquote(parts.path)
            )
            if not (target / "index.html" if target.is_dir() else target).is_file():
                found.append(f"{name}: there is no such file in the site: {address}")
    return found


def main() -> None:
    """Prints the problems."""
    found = problems(Path(sys.argv[1]))
    for problem in found:
        print(problem)
    if found:
        sys.exit(f"{len(found)} problems")


if __name__ == "__main__":
    main()
