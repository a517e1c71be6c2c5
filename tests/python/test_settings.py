"""docs/settings.md has exactly the settings of the core, each with its variable, its option and its default."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from lattice_rdzv import _core
from lattice_rdzv.cli import judgements
from lattice_rdzv.errors import SettingsError

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "settings.md").read_text()
KEYS = (ROOT / "src" / "settings" / "keys.rs").read_text()
FILES = sorted((ROOT / "src" / "settings").glob("*.rs"))
RESOLVE = "".join(file.read_text().split("#[cfg(test)]\nmod tests")[0] for file in FILES)


class Row(NamedTuple):
    """A setting as the page describes it."""

    variable: str
    default: str
    meaning: str


def rows() -> dict[str, Row]:
    """Returns the settings of all tables of the page by key."""
    found = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", PAGE.replace("| |", "|  |"), re.MULTILINE)
    keys = [key for key, *_ in found]
    assert len(keys) == len(set(keys)), "a setting stands in the page twice"
    return {key: Row(*(cell.strip() for cell in cells)) for key, *cells in found}


def known() -> set[str]:
    """Returns the settings that the core lists in the error of an unknown setting."""
    with pytest.raises(SettingsError, match="known settings are") as refused:
        _core.Settings({"no_such_setting": "1"}, {})
    _, listed = str(refused.value).split("known settings are")
    return set(re.findall(r"`(\w+)`", listed))


def sources() -> dict[str, tuple[str, ...]]:
    """Returns the variable and the option of each key from the source of the core's table, because no function returns them."""
    _, table = KEYS.split("pub(super) const KEYS")
    table, _ = table.split("];", 1)
    entries = re.findall(r'(?:key\(|with_variable\(|Key \{ name: )("\w+".*)', table)
    return {key: tuple(more) for key, *more in (re.findall(r'"([^"]+)"', entry) for entry in entries)}


def defaults() -> dict[str, str]:
    """Returns the defaults that are literals, from the source where the core reads each setting."""
    times = re.findall(r'duration\("(\w+)", [^,]+, ([\d.]+)\)', RESOLVE)
    words = re.findall(r'read\("(\w+)"(?:(?!read\().)*?\)\?\s*\.unwrap_or\((.+?)\)[,;\n]', RESOLVE, re.DOTALL)
    literals = {key: f"{float(seconds):g}" for key, seconds in times}
    return literals | {key: re.split(r"::|\(", literal)[-1].rstrip(")").lower() for key, literal in words}


def test_every_setting_is_in_the_page_and_no_other() -> None:
    assert rows().keys() == known()
    # Only the package itself passes this one.
    assert sources().keys() == known() | {"host_name"}


@pytest.mark.parametrize("key", sorted(known() - {"endpoint"}))
def test_every_setting_has_its_variable_and_its_option(key: str) -> None:
    row = rows()[key]
    variables = [f"`{source}`" for source in sources()[key] if not source.startswith("--")]
    assert [row.variable] == (variables or [""])
    for option in (source for source in sources()[key] if source.startswith("--")):
        assert f"`{option}`" in row.meaning


def test_every_default_is_the_cores() -> None:
    core = _core.Settings({"run_id": "run", "nnodes": "2", "node_name": "node", "endpoint": "etcd:2379"}, {})
    written = {key: row.default.split("`")[1] for key, row in rows().items() if row.default.startswith("`")}
    assert written == defaults() | {"tenant": core.tenant}
    # The values that the core returns must be those that were read from its source.
    assert written["lease_ttl"] == f"{core.lease_ttl_seconds:g}"
    assert written["join_timeout"] == f"{core.join_timeout_seconds:g}"
    assert written["close_timeout"] == f"{core.close_timeout_seconds:g}"
    assert written["on_node_failure"] == core.on_node_failure
    assert written["leave_on_signal"] == str(core.leave_on_signal).lower()


def test_variables_that_the_core_returns_are_those_of_its_table() -> None:
    of_the_table = [source for both in sources().values() for source in both if not source.startswith("--")]
    of_others = re.findall(r"NODE_INDEX_VARIABLES.*?= &\[(.*?)\];", KEYS, re.DOTALL)[0].replace('"', "").split(", ")
    assert sorted(_core.Settings.variables()) == sorted([*of_the_table, *of_others])


@pytest.mark.parametrize("variable", [*judgements.ENDPOINT_VARIABLES, *judgements.OTHER_VARIABLES])
def test_every_variable_that_is_read_is_in_the_page(variable: str) -> None:
    assert f"`{variable}`" in PAGE
