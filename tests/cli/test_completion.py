# SPDX-License-Identifier: Apache-2.0
"""The options that are completed are those that the parsers have.

`python tests/cli/test_completion.py` writes them down anew.
"""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import malformed_place
import pytest
from jsonargparse._typehints import ActionTypeHint

import scm_lightning.cli
from scm_lightning.cli import main
from scm_lightning.cli.ablation import Ablation
from scm_lightning.cli.app import SCMCommandLine
from scm_lightning.cli.convert import convert
from scm_lightning.cli.export import export
from scm_lightning.cli.misfits import _kinds, _subclasses
from scm_lightning.cli.parsers import CommandParser
from scm_lightning.cli.prepare import prepare
from scm_lightning.cli.reconstruct import reconstruct
from scm_lightning.cli.sample import sample
from scm_lightning.data import Shards
from scm_lightning.modules import ConsistencyModule, DiffusionModule
from scm_lightning.networks import MLP, DiT, EDM2UNet, UNet

FILE = Path(scm_lightning.cli.__file__).with_name("options.json")
LIBRARY = "scm_lightning."
NETWORKS = {MLP, UNet, DiT, EDM2UNet}
"""Of all modules, those that a model is trained with."""
OPTIMIZER = "optimizer"
NO_OPTIONS = ("help", "subcommand", "print_config")


def own_names(parser):
    return {x for x in parser.option_names() if x.rpartition(".")[2] not in NO_OPTIONS}


def names_below(kind, prefix):
    """Options of a class, and of our classes that these may name."""
    parser = CommandParser()
    parser.add_class_arguments(kind, prefix)
    names = own_names(parser) - {prefix}
    for action in parser._actions:
        if isinstance(action, ActionTypeHint) and action.dest.count(".") < 4:
            kinds = {x for kind in _kinds(action._typehint) for x in _subclasses(kind)}
            for each in NETWORKS if kinds >= NETWORKS else kinds:
                if each.__module__.startswith(LIBRARY) and not inspect.isabstract(each):
                    names |= names_below(each, f"{action.dest}.init_args")
    return names


def options_of_parsers():
    """What `options.json` must hold."""
    parsers = {}

    def keep(self, parser, args):
        parsers.update(self._subcommand_parsers)
        raise malformed_place.Trained

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SCMCommandLine, "parse_arguments", keep)
        with pytest.raises(malformed_place.Trained):
            main(["fit"])
    models = own_names(parsers["fit"])
    for kind in (ConsistencyModule, DiffusionModule):
        models |= names_below(kind, "model.init_args")
    models |= names_below(Shards, "data.init_args")
    optimizer = f"model.init_args.{OPTIMIZER}.init_args"
    models -= {f"model.init_args.lr_schedule.init_args.{OPTIMIZER}"}  # Lightning hands it over
    found = {"models": models | {f"{optimizer}.lr", f"{optimizer}.betas"}}
    for name in ("bench", "predict"):
        found[name] = own_names(parsers[name]) - models
    for name, function in {
        "prepare": prepare,
        "export": export,
        "convert": convert,
        "reconstruct": reconstruct,
        "sample": sample,
    }.items():
        parser = CommandParser()
        parser.add_function_arguments(function)
        found[name] = own_names(parser)
    parser = CommandParser()
    parser.add_class_arguments(Ablation)
    found["ablate"] = own_names(parser) | {"config"}
    return {name: sorted(each) for name, each in found.items()}


def test_the_options_written_down_are_those_of_the_parsers():
    assert json.loads(FILE.read_text()) == options_of_parsers()


def completed(script, *words):
    """What bash proposes behind some words."""
    line = f'COMP_WORDS=({" ".join(words)} "") COMP_CWORD={len(words)}'
    if words[-1].startswith("-") or words == ("scm", "fi"):
        line = f"COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}"
    code = f'{script}\n{line}\n_scm\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_subcommands_and_options(capsys):
    main(["completion", "bash"])
    script = capsys.readouterr().out
    assert completed(script, "scm", "fi") == ["fit"]
    assert completed(script, "scm", "fit", "--trainer.max_s") == ["--trainer.max_steps"]
    assert completed(script, "scm", "export", "--o") == ["--out", "--overwrite"]
    assert "--dry_run" in completed(script, "scm", "bench", "--")
    assert completed(script, "scm", "completion") == ["bash", "zsh", "fish"]
    assert completed(script, "scm", "fit", "--config", "x") == []  # the shell completes files


def test_other_shells_know_the_same_options(capsys):
    for shell in ("zsh", "fish"):
        main(["completion", shell])
        script = capsys.readouterr().out
        assert "trainer.max_steps" in script
        assert "samples_per_shard" in script


def test_a_script_does_not_wait_for_torch():
    code = (
        "import sys; from scm_lightning.cli import main; main(['completion', 'bash']);"
        "main(['fit', '--help']); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


if __name__ == "__main__":
    FILE.write_text(json.dumps(options_of_parsers(), indent=1) + "\n")
