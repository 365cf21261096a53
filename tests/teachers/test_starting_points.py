# SPDX-License-Identifier: Apache-2.0
"""README's "Start from what you have": each of its teachers, of a small file, by `scm fit`."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from safetensors.torch import save_file
from teachers.starts import DDPMPP, STARTS, Start
from teachers.toy import toy_data, train_on_toy
from tiny import trainer
from torch.utils.data import DataLoader

from scm_lightning import Batch, DiffusionModule, TrigFlow
from scm_lightning.core import Bound
from scm_lightning.networks import UNet

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SECTION = README.partition("## Start from what you have")[2].partition("\n## ")[0]
POINTS = [*yaml.safe_load_all(re.findall(r"```yaml\n(.*?)```", SECTION, flags=re.DOTALL)[0])]
OWN_CODE = re.findall(
    r"```python\n(.*?)```",
    (ROOT / "scm_lightning" / "teachers" / "README.md").read_text(),
    flags=re.DOTALL,
)[0]
SHAPE, CLASSES = (3, 8, 8), 4
NETWORK = {"data_shape": SHAPE, "num_classes": CLASSES, **DDPMPP["init_args"]}


def test_there_are_seven() -> None:
    assert len(POINTS) == 7
    assert all(set(point) == {"teacher"} for point in POINTS)


def own_run(folder: Path) -> Start:
    """A run of this package, whose checkpoint is in the folder."""
    module = DiffusionModule(UNet(**NETWORK))
    run = trainer(1)
    x0, labels = toy_data(24, SHAPE, CLASSES, 0.5)
    run.fit(module, DataLoader([Batch(x0, labels)], batch_size=None))
    run.save_checkpoint(folder / "last.ckpt")
    return Start("", lambda _: folder / "last.ckpt", "", SHAPE, CLASSES, 0.5, DDPMPP)


def own_class(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """The class of the other README, of a network that is trained as a denoiser D(x, sigma)."""

    class MyUNet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = UNet(**NETWORK)

        def forward(self, x, sigma, labels=None):
            t = (sigma / 0.5).atan()
            u = t.cos().reshape(-1, 1, 1, 1) * x / 0.5
            F = Bound(self.net, labels)(u, t)
            return TrigFlow(0.5).consistency(F, 0.5 * u, t)

    module = ModuleType("my_project")
    net = MyUNet()
    train_on_toy(net.net, [*net.parameters()], SHAPE, CLASSES, 0.5, steps=80)
    save_file(net.state_dict(), folder / "my.safetensors")
    module.MyUNet = MyUNet
    monkeypatch.setitem(sys.modules, "my_project", module)
    exec(OWN_CODE, vars(module))
    vars(module)["MyTeacher"].__module__ = "my_project"
    kind = "my_project.MyTeacher"
    return Start("", lambda _: folder / "my.safetensors", kind, SHAPE, CLASSES, 0.5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", range(7))
def test_a_starting_point_is_run(place, tmp_path, monkeypatch, capsys) -> None:
    """Under the small file's name in the place of the public one."""
    teacher = POINTS[place]["teacher"]
    if isinstance(teacher, str):
        start = own_run(tmp_path)
    elif teacher["class_path"].startswith("my_project"):
        start = own_class(tmp_path, monkeypatch)
    else:
        start = next(each for each in STARTS if each.kind == teacher["class_path"])
    path = start.write(tmp_path)
    config = start.config(tmp_path, path, steps=2)
    options = config["model"]["init_args"]
    if isinstance(teacher, str):
        options["teacher"] = str(path)
    else:
        named = set(options["teacher"]["init_args"]) - {"num_heads"}  # public files say it by size
        assert named == set(teacher["init_args"])
    start.run(tmp_path, config)
    said = " ".join(capsys.readouterr().out.split())
    assert isinstance(teacher, str) or "error of the teacher (of a linear filter)" in said
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
