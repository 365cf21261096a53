# SPDX-License-Identifier: Apache-2.0
"""What is said of an error that is the user's own: whose network it was, and on what."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from scm_lightning.cli.failures import failed_network, reason
from scm_lightning.core import NULL_LABEL
from scm_lightning.networks.classes import check_labels
from scm_lightning.whole_files import write_whole


class Own(nn.Module):
    """A network of the user's, whose layer takes 6 numbers and 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.embedding = nn.Linear(6, 6), nn.Embedding(3, 6)

    def forward(self, u, t, labels=None, guidance=None):
        if u.shape[1] == 5:
            check_labels(labels, 3, NULL_LABEL)  # our own words
        return self.linear(u) + self.embedding(labels)


@pytest.mark.parametrize(
    ("channels", "labels", "said"),
    [
        (4, [0, 2], "given u (2, 4) float32, t (2,) float64, labels (2,) int64 from 0 to 2"),
        (6, [1, 7], "labels (2,) int64 from 1 to 7, guidance None: index out of range"),
    ],
)
def test_the_network_and_what_it_was_given_are_named(channels, labels, said):
    given = torch.zeros(2, channels), torch.ones(2).double(), torch.tensor(labels)
    with pytest.raises((RuntimeError, IndexError)) as caught:
        nn.Sequential(Own())[0](*given)
    line = failed_network(caught.value)
    assert line.startswith(f"the network {__name__}.Own failed, ")
    assert said in line


def test_what_this_package_refuses_within_it_is_no_failure_of_the_network():
    with pytest.raises(ValueError, match="label 7") as caught:
        Own()(torch.zeros(1, 5), torch.ones(1), torch.tensor([7]))
    assert failed_network(caught.value) is None


def test_a_library_s_own_layer_is_not_the_user_s():
    with pytest.raises(RuntimeError) as caught:
        nn.Sequential(nn.Linear(6, 6))(torch.zeros(2, 4))
    assert failed_network(caught.value) is None


def test_a_file_is_named_as_the_user_knows_it(tmp_path):
    """Not by the name under which it is written first."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder") as caught:
        write_whole(tmp_path / "folder", "text")
    assert reason(caught.value) == f"{tmp_path}/folder: Is a directory"


def test_a_class_beside_the_user_is_found(tmp_path):
    """A module in the current directory is found, and none there hides an installed one."""
    (tmp_path / "own_code.py").write_text("class Net: ...\n")
    (tmp_path / "yaml.py").write_text("raise SystemExit('the wrong yaml')\n")
    program = (
        "import sys; sys.path.remove(''); sys.argv = ['scm', 'completion', 'bash']; "
        "from scm_lightning.cli import main; main(); import own_code, yaml; yaml.safe_load"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=True,
    )
