# SPDX-License-Identifier: Apache-2.0
"""What is said of a teacher that cannot be opened: its own words, under its option, in one line."""

from pathlib import Path

import pytest

from scm_lightning.cli import main

CONFIG = Path(__file__).parents[2] / "configs" / "digits_scd.yaml"
PAGE = "<!DOCTYPE html><html></html>"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        ("EDM2Teacher", None, "No such file or directory"),
        ("EDM2Teacher", PAGE, "must be a pickle, got an HTML page"),
        ("EDMTeacher", POINTER, "Git LFS"),
        ("EDM2SCMTeacher", "", "empty"),
        ("DiTTeacher", PAGE, "must be a file of torch.save, got an HTML page"),
        ("DiffusersTeacher", PAGE, "folder"),
    ],
)
def test_a_file_of_another_kind_is_named(kind, content, said, tmp_path, capsys):
    file = tmp_path / "a.pkl"
    if content is not None:
        file.write_text(content)
    teacher = f"--model.init_args.teacher={{class_path: {kind}, init_args: {{path: {file}}}}}"
    root = f"--trainer.default_root_dir={tmp_path / 'run'}"
    with pytest.raises(SystemExit) as caught:
        main(["fit", f"--config={CONFIG}", teacher, root])
    assert caught.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("scm: error: model.init_args.teacher: ")
    assert said.lower() in line.lower()
    assert "class 'str'" not in line
