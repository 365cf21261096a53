# SPDX-License-Identifier: Apache-2.0
"""`scm completion`: subcommands and options for the shell to complete, without starting Python.

The names of all options are in `options.json`, which `tests/cli/test_completion.py` compares with
the parsers.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from scm_lightning.cli.screens import OF_MODELS, SUBCOMMANDS

SHELLS = ("bash", "zsh", "fish")
BASH = """\
_scm() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} words=
  if [[ $COMP_CWORD == 1 ]]; then words="{commands} --help --version"
  elif [[ $cur == -* ]]; then
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
  elif [[ ${{COMP_WORDS[1]}} == completion ]]; then words="{shells}"
  fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o bashdefault -o default -F _scm scm
"""
"""Completion in bash; the shell completes files where it completes nothing."""
ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"


@cache
def _options() -> dict[str, list[str]]:
    file = Path(__file__).with_name("options.json")
    return dict(json.loads(file.read_text()))


def known_options(command: str) -> set[str]:
    """Names of the options of a subcommand, with those of this package's classes.

    Args:
        command: the subcommand; of another, there are none.
    """
    shared = _options()["models"] if command in OF_MODELS else []
    return {*shared, *_options().get(command, [])}


def script(words: Sequence[str]) -> str:
    """A script that a shell reads to complete the words of `scm`.

    Args:
        words: what comes behind `completion`: the shell.

    Raises:
        ValueError: if it is another shell.
    """
    if len(words) != 1 or words[0] not in SHELLS:
        raise ValueError(
            f"the shell must be one of {', '.join(SHELLS)}, got {' '.join(words) or 'none'}; for "
            "example scm completion bash > ~/.local/share/bash-completion/completions/scm"
        )
    options = {each: sorted({"help", *known_options(each)}) for each in SUBCOMMANDS}
    if words[0] == "fish":
        lines = [f'complete -c scm -n __fish_use_subcommand -f -a "{" ".join(SUBCOMMANDS)}"']
        for command, names in options.items():
            behind = f'complete -c scm -n "__fish_seen_subcommand_from {command}"'
            lines += [f"{behind} -r -l {name}" for name in names]
        return "\n".join(lines) + "\n"
    cases = "\n".join(
        f'      {command}) words="{" ".join(f"--{name}" for name in names)}" ;;'
        for command, names in options.items()
    )
    bash = BASH.format(commands=" ".join(SUBCOMMANDS), cases=cases, shells=" ".join(SHELLS))
    return (ZSH if words[0] == "zsh" else "") + bash
