# SPDX-License-Identifier: Apache-2.0
"""Screens of `scm --help` and `scm fit --help`, and the command that was meant; without torch.

`scm fit --help-all` shows what the parser says of every option.
"""

import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import takewhile

from scm_lightning import __version__

OF_MODELS = {
    "fit": "Train a teacher or a student. Run the same command again; it continues.",
    "validate": "Draw a few samples of a trained run and log their distance from the data.",
    "test": "Draw samples of a trained run, print the table of scores, write metrics.json.",
    "predict": "Draw samples of a trained run; write pictures and samples.npz.",
    "bench": "Measure time, memory and FLOPs of a training step; --dry-run needs no GPU.",
}
"""Subcommands that take the options of a model, and what each does."""
NEEDED = {
    "prepare": ("source", "out"),
    "reconstruct": ("run", "sigma_rel", "out"),
    "export": ("checkpoint", "out"),
    "convert": ("source", "out"),
    "sample": ("checkpoint", "out"),
}
"""Subcommands that are functions, in files of their names; the options that they need, in order."""
SUBCOMMANDS = (*OF_MODELS, "ablate", *NEEDED, "completion")
OTHER_WORDS = {
    "train": "fit",
    "training": "fit",
    "resume": "fit",
    "continue": "fit",
    "eval": "test",
    "evaluate": "test",
    "score": "test",
    "generate": "predict",
    "benchmark": "bench",
    "version": "--version",
}
"""Names of the subcommands in other programs."""
HEADINGS = {
    "trainer": "the run, by Lightning's trainer: steps, device, precision, folder",
    "model": "model: a student's ConsistencyModule, a teacher's DiffusionModule, or your own",
    "data": "data: Shards, Digits or your own",
    "metrics": "scores of drawn samples",
    "grids": "pictures of drawn samples",
    "diagnostics": "tangent norms and losses per time, in the log",
    "gradient_sync": "comparison of the processes' weights",
    "bad_numbers": "steps whose loss or gradient is not finite",
    "stop_signals": "signals of a scheduler",
    "lost_process": "processes that hang, die or fail",
    "checkpoints": "checkpoints of the run",
}
"""Titles of groups of options, in `--help-all`."""
HELP = f"""\
usage: scm [-h] [--version]
           {{{",".join(SUBCOMMANDS)}}} ...

scm_lightning {__version__}: continuous-time consistency models, from training to samples.

  scm prepare  --source PATH --out FOLDER
                               shards of a set of images: folders, archives, ImageNet, CIFAR-10
  scm fit      --config FILE   train a teacher or a student; writes checkpoints and logs
  scm validate --config FILE   draw a few samples and log their distance
  scm test     --config FILE   draw samples, print the table of scores, write metrics.json
  scm predict  --config FILE   draw samples, write pictures and samples.npz
  scm bench    --config FILE   time, memory and FLOPs of its training step, by every method;
                               with --dry-run, what the run would need, without a GPU
  scm ablate   --config FILE   train and score variants over seeds; one table, one plot
  scm reconstruct --run FOLDER --sigma_rel WIDTH --out FILE
                               averaged weights of another width, from the snapshots of a run
  scm export   --checkpoint FOLDER --out FILE.safetensors
                               the averaged network of a run, to sample from or to teach
  scm sample   [--checkpoint FILE.safetensors] [--out FILE.png]
                               a picture of its samples, by --classes, --n, --steps, --seed; without
                               a file, of the student of digits that comes with this package
  scm convert  --source FILE.pkl --out FOLDER
                               a network of edm2_sCM as a run, to test, to export, to go on from
  scm completion bash|zsh|fish
                               a script that lets the shell complete subcommands and options

Every key of a configuration is an option too: --trainer.max_steps 100, --data.init_args.batch_size
64. --config can be given several times; later files and options win. scm SUBCOMMAND --help shows
what one sets, scm SUBCOMMAND --config FILE --print_config what all options come to.
SCM_TRACEBACK=1 in the environment shows the traceback of an error.
"""
SCREEN = """\
usage: scm {command} --config FILE [--config FILE ...] [--KEY VALUE ...]

{does}

  --config FILE                     later files win, and options win over files
data
  --data.init_args.root FOLDER      shards that `scm prepare` wrote
  --data.init_args.batch_size N     samples per process and step
model
  --model.init_args.teacher FILE    checkpoint that a student learns from
  --model.init_args.student CLASS   network of a student: MLP, UNet, DiT ...
  --model.init_args.network CLASS   network of a teacher
  --model.init_args.optimizer.init_args.lr RATE
steps
  --trainer.max_steps N             optimizer steps of the run
  --trainer.val_check_interval N    batches between validations
device
  --trainer.accelerator NAME        auto, cpu or gpu
  --trainer.devices N               processes on this machine, one per device
  --trainer.precision NAME          32-true or bf16-mixed
run
  --trainer.default_root_dir FOLDER where everything is written
  --checkpoints.every_n_train_steps N
  --seed_everything N               seed of weights, times and noise
  --fresh                           start anew; older checkpoints move aside
  --ckpt_path FILE                  checkpoint to use; by default the run's last
{own}help
  --help-all                        all options, with Lightning's
  --model.help CLASS                options of a class, for example of UNet; the
                                    same behind any option that names a class
  --print_config                    what all options come to, as YAML
"""
OF_BENCH = """\
bench
  --dry-run                         count what the run would need, without a GPU
  --rounds N                        rounds to take the median over
  --json FILE                       where the numbers are written to
"""


def screen(command: str) -> str:
    """Screen of `scm COMMAND --help`.

    Args:
        command: one of `OF_MODELS`.
    """
    own = OF_BENCH if command == "bench" else ""
    return SCREEN.format(command=command, does=OF_MODELS[command], own=own)


def with_underscores(word: str) -> str:
    """An option's name as the parser knows it: --dry-run is --dry_run.

    Args:
        word: a word of the command line; only an option's name is changed.
    """
    return re.sub(r"^--[^=]+", lambda found: "--" + found[0][2:].replace("-", "_"), word)


def mistaken(words: Sequence[str]) -> str | None:
    """Say what is wrong with the order of a command's words, and which line was meant.

    Args:
        words: the command line without the program's name.

    Returns:
        The refusal; None if a subcommand comes first, and options behind it.
    """
    command, *rest = words
    if command not in SUBCOMMANDS:
        return _not_a_subcommand(command, rest)
    if command == "sample" and any(word.partition("=")[0] == "--config" for word in rest):
        line = shlex.join(["scm", "predict", *rest])
        return f"sample takes a network and no configuration; did you mean: {line}"
    given = list(takewhile(lambda word: not word.startswith("-"), rest))
    if not given or command == "completion":
        return None
    names = NEEDED.get(command, ("config",))
    refusal = f"options have names, got {shlex.join(given)} without"
    if len(given) > len(names):
        return f"{refusal}; scm {command} takes {' '.join(f'--{name}' for name in names)}"
    pairs = [part for pair in zip(names, given, strict=False) for part in (f"--{pair[0]}", pair[1])]
    missing = [part for name in names[len(given) :] for part in (f"--{name}", name.upper())]
    behind = rest[len(given) :] or missing
    return f"{refusal}; did you mean: {shlex.join(['scm', command, *pairs, *behind])}"


def _not_a_subcommand(command: str, rest: Sequence[str]) -> str:
    found = next((word for word in rest if word in SUBCOMMANDS), None)
    if not rest and (alike := get_close_matches(command.lower(), ("--help", "--version"), n=1)):
        return f"there is no option {command}; did you mean: scm {alike[0]}"
    if command == "help":
        return f"there is no subcommand help; did you mean: {shlex.join(['scm', *rest, '--help'])}"
    if command.startswith("-"):
        known = [word for word in (command, *rest) if word != found]
        line = shlex.join(["scm", found or "fit", *known])
        return f"the subcommand comes first, got {command}; did you mean: {line}"
    if command.endswith((".yaml", ".yml")):
        line = shlex.join(["scm", "fit", "--config", command, *rest])
        return f"there is no subcommand {command}; did you mean: {line}"
    near = get_close_matches(command.lower(), SUBCOMMANDS, n=1)
    if other := OTHER_WORDS.get(command, next(iter(near), None)):
        line = shlex.join(["scm", other, *rest])
        return f"there is no subcommand {command}; did you mean: {line}"
    return f"there is no subcommand {command}, only {', '.join(SUBCOMMANDS)}"
