# SPDX-License-Identifier: Apache-2.0
"""Configurations that cannot be read, and commands that no subcommand takes.

Each with what the line must say; `{d}` is the folder of the tests' files, BASE a whole
configuration.
"""

BASE = "{d}/base.yaml"
WHOLE = "{d}/run/checkpoints/last.ckpt"
ABC = b"abcdefgh"
FILES = {
    "list": (b"- 1\n- 2\n", ""),
    "text": (b"hello", ""),
    "number": (b"3", ""),
    "bracket": (b"model: [1, 2", "bracket.bad.yaml: Problems parsing config"),
    "tab": (b"trainer:\n\tmax_steps: 1\n", "line 2, column 1"),
    "indent": (b"trainer:\n  max_steps: 1\n accelerator: cpu\n", "line 3"),
    "colon": (b"trainer: max_steps: 1\n", "line 1"),
    "twice": (b"trainer:\n  max_steps: 1\n  max_steps: 2\n", "the key max_steps stands twice"),
    "twice_above": (b"trainer: {max_steps: 1}\ntrainer: {max_epochs: 2}\n", "trainer"),
    "two_documents": (b"seed_everything: 1\n---\nseed_everything: 2\n", ""),
    "alias": (b"trainer: *nothing\n", "alias"),
    "anchor": (b"trainer: &a [*a]\n", "contain themselves"),
    "object": (b"seed_everything: !!python/object/apply:os.getpid []\n", "python/object"),
    "name": (b"seed_everything: !!python/name:os.system\n", "python/name"),
    "tag": (b"seed_everything: !nonsense 3\n", "nonsense"),
    "binary": (bytes(range(256)), ""),
    "zeros": (bytes(64), ""),
    "latin": ("trainer: {default_root_dir: r\u00e9sum\u00e9}\n".encode("latin-1"), "utf"),
    "utf16": ("trainer: {max_steps: x}\n".encode("utf-16"), "utf16.bad.yaml must be text in UTF-8"),
    "surrogate": (b'trainer: {max_steps: "\xf0\x9f\x8e\xb2"}\n', "max_steps"),
    "deep": (b"a: " + b"[" * 3000, ""),
    "unknown": (b"nonsense: 1\n", "nonsense"),
    "near": (b"trainr: {max_steps: 1}\n", "trainr"),
    "unknown_in_group": (b"trainer: {max_step: 1}\n", "did you mean trainer.max_steps?"),
    "unknown_in_callback": (b"grids: {rows: 2}\n", "rows"),
    "unknown_in_model": (
        b"model: {class_path: scm_lightning.modules.ConsistencyModule, init_arg: {}}\n",
        "model takes class_path, init_args, dict_kwargs, got init_arg; did you mean init_args?",
    ),
    "bomb": (
        b"a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (i + 1, i + 1, b", ".join([b"*%c" % i] * 10)) for i in ABC),
        "more than 100000 values",
    ),
    "list_for_callback": (b"grids: [1]\n", "grids"),
    "no_class": (b"model: {init_args: {student: x}}\n", "model"),
    "list_for_group": (b"trainer: [1, 2]\n", "trainer"),
    "null_for_trainer": (b"trainer: null\n", "trainer"),
    "null_for_callback": (b"diagnostics: null\n", "diagnostics"),
    "null_for_model": (b"model: null\n", "model"),
    "null_for_data": (b"data: ~\n", "data"),
    "list_for_class": (b"data: [1]\n", "data"),
    "text_for_group": (b"trainer: fast\n", "trainer"),
    "null_for_group": (b"trainer: {max_steps: {}}\n", "max_steps"),
    "number_key": (b"1: 2\n", "1"),
    "null_key": (b"~: 2\n", ""),
    "list_key": (b"? [a, b]\n: 2\n", ""),
    "list_of_options": (b"trainer:\n- max_steps: 1\n- accelerator: cpu\n", "trainer"),
    "placeholder": (b"data: {init_args: {batch_size: '${oc.env:HOME}'}}\n", "batch_size"),
    "huge": (b"trainer: {max_steps: 1" + b"0" * 400 + b".5}\n", "max_steps"),
    "date": (b"trainer: {max_steps: 2026-01-01}\n", "max_steps"),
    "yes": (b"trainer: {max_steps: yes}\n", "max_steps"),
    "subcommand": (b"fit: {trainer: {max_steps: 1}}\n", "fit"),
    "nan": (b"trainer: {max_steps: .nan}\n", "max_steps"),
    "callback": (b"trainer: {callbacks: [{class_path: os.system}]}\n", "callbacks"),
}
"""Content, read after the base: `scm fit --config base.yaml --config FILE`."""
ALONE = ("list", "text", "bracket", "tab", "binary", "zeros", "deep", "two_documents")
"""Those that `scm ablate` is given too."""

COMMANDS = {
    "unknown": (["train"], "did you mean: scm fit"),
    "near": (["fitt"], "did you mean: scm fit"),
    "near_prepare": (["prepar"], "did you mean: scm prepare"),
    "upper": (["FIT"], "there is no subcommand FIT"),
    "empty": ([""], "there is no subcommand"),
    "unicode": (["f\u0456t"], "there is no subcommand"),
    "newline": (["a\nb"], "there is no subcommand"),
    "option_first": (["--trainer.max_steps", "1", "fit", "--config", BASE], "comes first"),
    "config_first": (["--config", BASE, "fit"], "comes first"),
    "file_for_subcommand": ([BASE], "there is no subcommand"),
    "two_subcommands": (["fit", "test", "--config", BASE], "test"),
    "no_options": (["fit"], "model"),
    "no_data": (["fit", "--model", "scm_lightning.modules.ConsistencyModule"], ""),
    "config_without_file": (["fit", "--config"], "--config"),
    "missing_file": (["fit", "--config", "{d}/nowhere.yaml"], "nowhere.yaml"),
    "pipe": (["fit", "--config", "{d}/pipe"], "pipe must be a regular file, got a pipe"),
    "large_file": (["fit", "--config", "{d}/large.yaml"], "must have at most 1,048,576 bytes"),
    "device": (["fit", "--config", "/dev/zero"], "/dev/zero"),
    "folder_as_file": (["fit", "--config", "{d}/folder.yaml"], "folder.yaml"),
    "empty_file": (["fit", "--config", "{d}/empty.yaml"], ""),
    "empty_name": (["fit", "--config", ""], ""),
    "zero_in_name": (["fit", "--config", "a\0b"], ""),
    "long_name": (["fit", "--config", "a" * 5000], ""),
    "config_is_a_checkpoint": (["fit", "--config", "{d}/run/checkpoints/last.ckpt"], ""),
    "stray_word": (["fit", "--config", BASE, "stray"], "stray"),
    "short_option": (["fit", "--config", BASE, "-x"], "-x"),
    "option_without_value": (["fit", "--config", BASE, "--trainer.max_steps"], "max_steps"),
    "single_dash": (["fit", "-config", BASE], ""),
    "fit_takes_no_rounds": (["fit", "--config", BASE, "--rounds", "3"], "rounds"),
    "bench_no_rounds": (["bench", "--config", BASE, "--rounds", "0"], "at least 1 round"),
    "bench_text": (["bench", "--config", BASE, "--rounds", "few"], "rounds"),
    "bench_gpu": (["bench", "--config", BASE, "--dry-run", "--gpu.memory", "much"], "gpu"),
    "bench_ckpt": (["bench", "--config", BASE, "--ckpt_path", "x"], "ckpt_path"),
    "bench_json": (["bench", "--config", BASE, "--dry-run", "--json", "$X/a.json"], "variable $X"),
    "bench_batch": (
        ["bench", "--config", BASE, "--dry-run", "--global_batch", "0"],
        "global_batch",
    ),
    "validate_untrained": (["validate", "--config", BASE], "there is no checkpoint"),
    "test_untrained": (["test", "--config", BASE], "there is no checkpoint"),
    "predict_untrained": (["predict", "--config", BASE], "there is no checkpoint"),
    "predict_flag": (["predict", "--config", BASE, "--return_predictions", "x"], "return_pred"),
    "test_verbose": (["test", "--config", BASE, "--verbose", "loud"], "verbose"),
    "test_max_steps": (["test", "--config", BASE, "--trainer.max_steps", "x"], "max_steps"),
    "ablate_nothing": (["ablate"], ""),
    "ablate_missing": (["ablate", "--config", "{d}/nowhere.yaml"], "nowhere.yaml"),
    "ablate_pipe": (["ablate", "--config", "{d}/pipe"], "must be a regular file, got a pipe"),
    "ablate_root": (["ablate", "--config", "{d}/ablation.yaml", "--root", "$X/a"], "variable $X"),
    "ablate_base_pipe": (
        ["ablate", "--config", "{d}/ablation.yaml", "--base", "{d}/pipe"],
        "must be a regular file, got a pipe",
    ),
    "ablate_folder": (["ablate", "--config", "{d}/folder.yaml"], "folder.yaml"),
    "ablate_base": (["ablate", "--config", BASE], ""),
    "ablate_unknown": (["ablate", "--nonsense", "1"], "nonsense"),
    "ablate_jobs": (["ablate", "--config", "{d}/ablation.yaml", "--jobs", "0"], "job,"),
    "ablate_seed": (["ablate", "--config", "{d}/ablation.yaml", "--seeds", "[1, 1]"], "seeds"),
    "ablate_seeds": (["ablate", "--config", "{d}/ablation.yaml", "--seeds", "one"], "seeds"),
    "ablate_scores": (["ablate", "--config", "{d}/ablation.yaml", "--scores", "[]"], "score"),
    "ablate_variant": (
        ["ablate", "--config", "{d}/ablation.yaml", "--variants", "{../x: {}}"],
        "name must be that of a folder",
    ),
    "ablate_key": (
        ["ablate", "--config", "{d}/ablation.yaml", "--variants", "{a: {student: {ckpt_path: x}}}"],
        "ckpt_path",
    ),
    "ablate_overrides": (
        ["ablate", "--config", "{d}/ablation.yaml", "--variants", "{a: {pupil: {x: 1}}}"],
        "pupil",
    ),
    "ablate_no_base": (
        ["ablate", "--config", "{d}/ablation.yaml", "--base", "{d}/nowhere.yaml"],
        "nowhere.yaml",
    ),
    "reconstruct_nothing": (["reconstruct"], "run"),
    "reconstruct_unknown": (["reconstruct", "--nonsense", "1"], "nonsense"),
    "reconstruct_no_run": (
        ["reconstruct", "--run", "{d}/nowhere", "--sigma_rel", "0.1", "--out", "{d}/new/x.ckpt"],
        "there is no run",
    ),
    "reconstruct_no_snapshots": (
        ["reconstruct", "--run", "{d}/run", "--sigma_rel", "0.1", "--out", "{d}/new/x.ckpt"],
        "there are no snapshots",
    ),
    "reconstruct_width": (
        ["reconstruct", "--run", "{d}/run", "--sigma_rel", "9", "--out", "{d}/new/x.ckpt"],
        "sigma_rel",
    ),
    "reconstruct_nan": (
        ["reconstruct", "--run", "{d}/run", "--sigma_rel", ".nan", "--out", "{d}/new/x.ckpt"],
        "sigma_rel",
    ),
    "reconstruct_variable": (
        ["reconstruct", "--run", "{d}/run", "--sigma_rel", "0.1", "--out", "${NEW}/x.ckpt"],
        "must not hold the variable ${NEW}",
    ),
    "reconstruct_text": (
        ["reconstruct", "--run", "{d}/run", "--sigma_rel", "wide", "--out", "x"],
        "sigma_rel",
    ),
    "export_nothing": (["export"], "checkpoint"),
    "export_name": (["export", "--checkpoint", "x", "--out", "{d}/new.ckpt"], "safetensors"),
    "export_missing": (
        ["export", "--checkpoint", "{d}/nowhere.ckpt", "--out", "{d}/new.safetensors"],
        "there is no checkpoint",
    ),
    "export_pipe": (
        ["export", "--checkpoint", "{d}/pipe.ckpt", "--out", "{d}/new.safetensors"],
        "there is no checkpoint",
    ),
    "export_unwritable": (
        ["export", "--checkpoint", WHOLE, "--out", "/proc/new.safetensors"],
        "/proc/new.safetensors could not be written",
    ),
    "export_variable": (
        ["export", "--checkpoint", WHOLE, "--out", "$X.safetensors"],
        "variable $X",
    ),
    "export_garbage": (
        ["export", "--checkpoint", "{d}/garbage.ckpt", "--out", "{d}/new.safetensors"],
        "is not a checkpoint, or is damaged",
    ),
    "export_weights": (
        ["export", "--checkpoint", "x", "--out", "x.safetensors", "--weights", "all"],
        "weights",
    ),
    "prepare_nothing": (["prepare"], "source"),
    "prepare_unknown": (["prepare", "--nonsense", "1"], "nonsense"),
    "prepare_no_source": (
        ["prepare", "--source", "{d}/nowhere", "--out", "{d}/new"],
        "nowhere",
    ),
    "prepare_size": (["prepare", "--source", "{d}", "--out", "{d}/new", "--size", "x"], "size"),
    "prepare_workers": (
        ["prepare", "--source", "{d}", "--out", "{d}/new", "--workers", "-1"],
        "workers",
    ),
    "prepare_crop": (["prepare", "--source", "{d}", "--out", "{d}/new", "--crop", "x"], "crop"),
    "prepare_kind": (["prepare", "--source", "{d}", "--out", "{d}/new", "--kind", "x"], "kind"),
    "prepare_empty": (
        ["prepare", "--source", "{d}/folder.yaml", "--out", "{d}/new"],
        "folder.yaml",
    ),
    "prepare_color": (
        ["prepare", "--source", "{d}", "--out", "{d}/new", "--background", "red"],
        "background",
    ),
}

STAGES = ("validate", "test", "predict")
CHECKPOINTS = {
    "nowhere.ckpt": "there is no checkpoint",
    "folder.yaml": "there is no checkpoint",
    "garbage.ckpt": "is not a checkpoint, or is damaged",
    "pickled.ckpt": "is not a checkpoint, or is damaged",
    "hollow.ckpt": "is not a checkpoint of scm_lightning",
    "flipped.ckpt": "does not fit its checksum",
    "diffusion/checkpoints/last.ckpt": "module consistency, got diffusion",
}
"""What `--ckpt_path` of a stage is given."""
