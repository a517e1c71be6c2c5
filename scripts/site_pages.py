"""Adds the pages of the documentation site that are not in docs/. It is a hook of MkDocs, which mkdocs.yml names.

Problem: the pages of the repository link to each other, to the README files of the examples and of the chart, and to source
files by their paths in the repository, but the site has other addresses. Choice: every Markdown file of the repository is a
page, and generated reference pages are added. Links are converted to links of the site if it has the page, or otherwise to
links of the repository. MkDocs checks the result, so a missing page is an error.
"""

import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

sys.path.insert(0, str(Path(__file__).parent))
from links import ABSOLUTE, CODE, DEFINITION, FENCE, INLINE, ROOT, TO_FILES, blank, markdown, repository
from site_reference import reference_pages

# A path in the repository, and the page or the file of the site that shows it.
PAGES: dict[str, str] = {}
MERMAID = "assets/mermaid.min.js"


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are not in docs/."""
    # Imported here, because tests rewrite links without MkDocs.
    from mkdocs.structure.files import File

    # MkDocs copies what is in docs/ besides pages, such as pictures.
    others = [path for path in (ROOT / "docs").rglob("*") if path.is_file() and path.suffix != ".md"]
    PAGES.update(pages([path.relative_to(ROOT).as_posix() for path in [*markdown(ROOT), *others]]))
    for name, shown in PAGES.items():
        if not name.startswith("docs/"):
            files.append(File.generated(config, shown, abs_src_path=str(ROOT / name)))
    for name, text in reference_pages(ROOT):
        files.append(File.generated(config, name, content=text))
    return files


def pages(names: list[str]) -> dict[str, str]:
    """Returns the page of the site that shows each file. Pure."""
    return {name: "index.md" if name == "README.md" else name.removeprefix("docs/") for name in names}


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Converts the links of a page to links of the site."""
    source = next((path for path, shown in PAGES.items() if shown == page.file.src_uri), None)
    return markdown if source is None else rewrite(markdown, source, PAGES, repository(ROOT) + TO_FILES)


def rewrite(text: str, source: str, shown: dict[str, str], base: str) -> str:
    """Returns the text of the file `source` with links that work in the page that shows it. Pure."""
    for start, end in reversed(list(targets(text))):
        text = text[:start] + site_target(text[start:end], source, shown, base) + text[end:]
    return text


def targets(text: str) -> Iterator[tuple[int, int]]:
    """Yields the positions of the targets of links. Pure."""
    prose = CODE.sub(blank, FENCE.sub(blank, text))
    found = [match.span(1) for match in INLINE.finditer(prose)] + [
        match.span(2) for match in DEFINITION.finditer(prose)
    ]
    yield from sorted(found)


def site_target(target: str, source: str, shown: dict[str, str], base: str) -> str:
    """Returns a link's target in the site: a page, or else a file of the repository, whose files are at `base`. Pure."""
    if target.startswith(base):
        path = target.removeprefix(base)
    elif ABSOLUTE.match(target) or target.startswith("#"):
        return target
    else:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    path, mark, fragment = path.partition("#")
    for name in (unquote(path), f"{unquote(path).rstrip('/')}/README.md"):
        if name in shown:
            return posixpath.relpath(shown[name], posixpath.dirname(shown[source]) or ".") + mark + fragment
    return base + path + mark + fragment


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Loads the library for diagrams from the site itself if a page has a diagram. The theme would load it from another
    host."""
    if 'class="mermaid"' not in output:
        return output
    script = posixpath.relpath(MERMAID, posixpath.dirname(page.file.dest_uri) or ".")
    with_script, times = re.subn(
        r"(?=<script src=\"[^\"]*javascripts/bundle)", f'<script src="{script}"></script>', output
    )
    assert times == 1, "the theme loads its script in another way"
    return with_script
