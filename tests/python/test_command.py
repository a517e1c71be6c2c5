"""The command itself: how it is started, and its output without arguments."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lattice_rdzv
from lattice_rdzv.cli import COMMANDS, main


def test_without_arguments_the_command_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "usage: lattice-rdzv" in printed
    assert all(command in printed for command in COMMANDS)


def test_package_is_the_command() -> None:
    started = subprocess.run(
        [sys.executable, "-m", "lattice_rdzv", "--version"], capture_output=True, text=True, check=True
    )
    assert started.stdout.strip() == f"lattice-rdzv {lattice_rdzv.__version__}"


def test_handler_without_torch_names_the_extra() -> None:
    source = """
import sys
sys.modules["torch"] = None
import lattice_rdzv.torch
try:
    lattice_rdzv.torch.LatticeRendezvousHandler
except ModuleNotFoundError as error:
    print(error)
"""
    started = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert "pip install 'lattice-rdzv[torch]'" in started.stdout, started.stdout
