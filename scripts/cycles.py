"""Checks that the files of src/ have no import cycle.

    cycles.py    fails and prints each import that is part of a cycle, with its names

A file and the folder of its submodules are one subject, so imports between a module and its ancestors do not count.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "src"
Name = tuple[str, ...]

_COMMENT = re.compile(r"//[^\n]*")
_TESTS = re.compile(r"#\[cfg\(test\)\]\nmod \w+ \{.*", re.DOTALL)
_USE = re.compile(r"\buse\s+([^;]+);")
_PATH = re.compile(r"(?<![\w:$])(?:crate|self|super)(?:::\w+)+")


def paths_of(tree: str) -> Iterator[Name]:
    """Yields the paths of a `use` tree: `a::{b, c::d}` has `a::b` and `a::c::d`."""
    prefix, brace, rest = tree.partition("{")
    if not brace:
        path = tuple(part.strip() for part in tree.split(" as ")[0].split("::"))
        yield path[:-1] if path[-1] == "self" else path
        return
    head = tuple(part.strip() for part in prefix.split("::") if part.strip())
    depth, item = 0, ""
    for letter in rest:
        if letter in ",}" and depth == 0:
            if item.strip():
                yield from (head + path for path in paths_of(item.strip()))
            item = ""
            continue
        depth += {"{": 1, "}": -1}.get(letter, 0)
        item += letter


def absolute(module: Name, path: Name, modules: dict[Name, Path]) -> Name | None:
    """Returns a path from the crate on, or `None` for other crates."""
    if path[0] == "crate":
        return path[1:]
    if path[0] in ("self", "super"):
        here = module
        while path and path[0] in ("self", "super"):
            here, path = here[:-1] if path[0] == "super" else here, path[1:]
        return here + path
    return (*module, *path) if (*module, path[0]) in modules else None


def imports() -> dict[Name, dict[Name, set[str]]]:
    """Returns for each module the modules that it imports, and the names."""
    files = {path: path.relative_to(SOURCES).with_suffix("").parts for path in SOURCES.rglob("*.rs")}
    modules = {parts[:-1] if parts[-1] in ("mod", "lib") else parts: path for path, parts in files.items()}
    used: dict[Name, set[Name]] = {}
    inline: dict[Name, set[Name]] = {}
    for module, path in modules.items():
        text = _COMMENT.sub("", _TESTS.sub("", path.read_text()))
        trees = (" ".join(tree.split()) for tree in _USE.findall(text))
        found = (absolute(module, use, modules) for tree in trees for use in paths_of(tree))
        used[module] = {use for use in found if use}
        found = (absolute(module, tuple(path.split("::")), modules) for path in _PATH.findall(_USE.sub("", text)))
        inline[module] = {use for use in found if use}

    def resolve(use: Name, depth: int = 0) -> Name:
        """Follows a name to the module that defines it."""
        module = next(use[:length] for length in range(len(use), -1, -1) if use[:length] in modules)
        rest = use[len(module) :]
        passed_on = {other[-1]: other for other in used[module] if rest and other != use}
        if rest and rest[0] in passed_on and depth < len(modules):
            return resolve(passed_on[rest[0]] + rest[1:], depth + 1)
        return module

    graph: dict[Name, dict[Name, set[str]]] = {module: {} for module in modules}
    for module, uses in used.items():
        for use in uses | inline[module]:
            target = resolve(use)
            related = module[: len(target)] == target or target[: len(module)] == module
            if not related:
                graph[module].setdefault(target, set()).add(use[-1])
    return graph


def reachable(graph: dict[Name, dict[Name, set[str]]], start: Name) -> set[Name]:
    """Returns the modules that a module imports, directly or not."""
    seen: set[Name] = set()
    new = [*graph[start]]
    while new:
        module = new.pop()
        if module not in seen:
            seen.add(module)
            new.extend(graph[module])
    return seen


def main() -> int:
    """Prints the imports that are part of a cycle."""
    graph = imports()
    ends = {module: reachable(graph, module) for module in graph}
    failed = False
    for module in sorted(graph):
        for target, names in sorted(graph[module].items()):
            if module in ends[target]:
                failed = True
                print(f"import cycle: {'/'.join(module)} imports {', '.join(sorted(names))} of {'/'.join(target)}")
    assert sum(map(len, graph.values())) > 100, "no imports were found"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
