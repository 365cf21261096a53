# SPDX-License-Identifier: Apache-2.0
"""Malformed command lines and configurations: one line each, exit code 2, and nothing is trained.

The cases are in `malformed_options.py` and `malformed_files.py`; the quick suite takes a quarter of
them, which are spread over all kinds.
"""

import os
import shutil

import malformed_files
import malformed_options
import malformed_place
import pytest
import yaml

from scm_lightning.cli import main

FIT = ["fit", "--config", malformed_files.BASE, "--config"]
CASES = {
    **{each: (malformed_options.words(each), said) for each, said in malformed_options.ALL.items()},
    **{
        f"file {name}": ([*FIT, f"{{d}}/{name}.bad.yaml"], said)
        for name, (_, said) in malformed_files.FILES.items()
    },
    **{
        f"ablate file {name}": (["ablate", "--config", f"{{d}}/{name}.bad.yaml"], "")
        for name in malformed_files.ALONE
    },
    **{f"command {name}": case for name, case in malformed_files.COMMANDS.items()},
    **{
        f"{stage} {file}": ([stage, *FIT[1:3], "--ckpt_path", f"{{d}}/{file}"], said)
        for stage in malformed_files.STAGES
        for file, said in malformed_files.CHECKPOINTS.items()
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the cases name."""
    folder = tmp_path_factory.mktemp("malformed")
    malformed_place.make(folder)
    for name, (content, _) in malformed_files.FILES.items():
        (folder / f"{name}.bad.yaml").write_bytes(content)
    ablation = {"title": "t", "question": "q", "base": str(folder / "base.yaml")}
    ablation |= {"root": str(folder / "new"), "scores": ["fd/1_step"], "variants": {"a": {}}}
    (folder / "ablation.yaml").write_text(yaml.safe_dump(ablation))
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.ckpt")
    (folder / "large.yaml").write_bytes(b"#" * 2**20 + b"\n")
    (folder / "spec.ckpt").write_text("class_path: scm_lightning.networks.MLP\n")
    return folder


@pytest.fixture(scope="module", autouse=True)
def stops(folder):
    """Nothing is trained, whatever a command asks for."""
    with malformed_place.stopped():
        yield


def _quarter(cases):
    """One in four; the others are slow."""
    return [
        pytest.param(case, marks=[] if number % 4 == 0 else pytest.mark.slow)
        for number, case in enumerate(cases)
    ]


@pytest.mark.parametrize("case", _quarter(CASES))
def test_a_malformed_command_ends_in_one_line(case, folder, capsys):
    words, said = CASES[case]
    with pytest.raises(SystemExit) as caught:
        main([word.replace("{d}", str(folder)) for word in words])
    shutil.rmtree(folder / "new", ignore_errors=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    assert caught.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("scm: error: ")
    assert said in lines[0]
    assert len(lines[0]) < 1000 + 1100 * ("a" * 500 in lines[0])


def test_the_base_itself_is_well_formed(folder):
    """So that every refusal above is for what its case adds."""
    with pytest.raises(malformed_place.Trained):
        main(["fit", "--config", str(folder / "base.yaml")])
    shutil.rmtree(folder / "new", ignore_errors=True)
