"""`lattice-rdzv completion` prints a script that completes commands and options in a shell."""

import argparse
from collections.abc import Mapping, Sequence

EXAMPLES = """\
examples:
  source <(lattice-rdzv completion bash)
  mkdir -p ~/.zsh/completions && lattice-rdzv completion zsh > ~/.zsh/completions/_lattice-rdzv
"""

_BASH = """\
_lattice_rdzv() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}"
    local words="{commands}"
    if [ "$COMP_CWORD" -gt 1 ]; then
        case "${{COMP_WORDS[1]}}" in
{cases}
            *) words="" ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _lattice_rdzv lattice-rdzv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the argument of `completion`."""
    parser.add_argument("shell", choices=("bash", "zsh"), help="shell to complete in")


def script(shell: str, options: Mapping[str, Sequence[str]]) -> str:
    """Returns the script for commands with these options. Pure."""
    cases = "\n".join(f'            {name}) words="{" ".join(words)}" ;;' for name, words in options.items())
    bash = _BASH.format(commands=" ".join(options), cases=cases)
    return bash if shell == "bash" else f"#compdef lattice-rdzv\nautoload -U +X bashcompinit && bashcompinit\n{bash}"
