# SPDX-License-Identifier: Apache-2.0
"""Beginning of a run: teachers of other sources, weights to start with, the first look."""

import copy
import math

import pytest
import torch
from lightning.pytorch import Trainer
from teachers.toy import toy_data, train_on_toy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from scm_lightning import Batch, ConsistencyModule, DiffusionModule, TrigFlow
from scm_lightning.networks import UNet
from scm_lightning.networks.time_embedding import TimeEmbedding
from scm_lightning.objectives import TeacherVelocity
from scm_lightning.storage import SavedRun
from scm_lightning.teachers import SourceTeacher

SHAPE, CLASSES, PATH = (3, 8, 8), 4, TrigFlow(0.7)


def unet(**options: object) -> UNet:
    sizes = {"model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1}
    more = {"attention_pixels": (8,), "dropout": 0.0, "num_classes": CLASSES}
    return UNet(SHAPE, **{**sizes, **more, **options})


class Foreign(SourceTeacher):
    """A network of this package in the place of another's."""

    def __init__(self, network: nn.Module, sigma_data: float = PATH.sigma_data) -> None:
        super().__init__(
            "a foreign network",
            num_classes=CLASSES,
            noise_range=(0.01, 60.0),
            sigma_data=sigma_data,
            licence="CC BY-NC-SA 4.0",
        )
        self.network, self.times = network, []

    def F(self, u: Tensor, t: Tensor, labels: Tensor | None, **conditions: Tensor) -> Tensor:
        self.times.append(t)
        return self.network(u, t, labels)

    def own_network(self) -> nn.Module:
        return self.network


@pytest.fixture(scope="module")
def trained() -> UNet:
    torch.manual_seed(0)
    net = unet(time_embedding=TimeEmbedding("log", sigma_data=PATH.sigma_data))
    train_on_toy(net, [*net.parameters()], SHAPE, CLASSES, PATH.sigma_data, steps=100)
    return net.eval()


def fit(module: nn.Module, offset: int = 0, steps: int = 2) -> Trainer:
    batches = []
    for step in range(steps):
        x0, labels = toy_data(24, SHAPE, CLASSES, PATH.sigma_data, seed=step)
        batches.append(Batch(x0, (labels + offset) % CLASSES))
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer


def student(teacher: nn.Module | None, net: UNet | None = None, **options: object) -> nn.Module:
    net = unet() if net is None else net
    return ConsistencyModule(net, TeacherVelocity(), teacher, path=PATH, **options)


def test_times_are_clamped_to_the_noise_of_the_source(trained: UNet) -> None:
    teacher = Foreign(trained)
    u = torch.randn(3, *SHAPE)
    teacher(u, torch.tensor([0.0, 0.5, math.pi / 2]), torch.tensor([0, 1, 2]))
    low, high = math.atan(0.01 / 0.7), math.atan(60 / 0.7)
    assert teacher.times[0].tolist() == pytest.approx([low, 0.5, high])
    with pytest.raises(ValueError, match="takes no guidance scale"):
        teacher(u, torch.full((3,), 0.5), None, torch.ones(3))


def test_a_student_takes_what_means_the_same_and_the_rest_is_said(trained: UNet, capsys) -> None:
    net = unet()
    before = copy.deepcopy(net.state_dict())
    module = student(Foreign(trained), net)
    said = " ".join(capsys.readouterr().out.split())
    assert "teacher: a foreign network" in said
    assert "licence CC BY-NC-SA 4.0" in said
    assert "conditioning.time.weight (another embedding of the time)" in said
    for name, weight in module.student.state_dict().items():
        is_new = name.startswith("conditioning.time.")
        expected = before[name] if is_new else trained.state_dict()[name]
        assert torch.equal(weight, expected), name
    same = unet(time_embedding=TimeEmbedding("log", sigma_data=PATH.sigma_data))
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            student(Foreign(trained), same).student.parameters(), trained.parameters(), strict=True
        )
    )


def test_a_source_of_another_architecture_is_refused(trained: UNet) -> None:
    with pytest.raises(ValueError, match="of the network's own architecture, but of a foreign"):
        student(Foreign(trained), unet(model_channels=24))
    student(Foreign(trained), unet(model_channels=24), init=None)
    with pytest.raises(ValueError, match=r"trained with 0\.5, the student has 0\.7"):
        student(Foreign(trained, sigma_data=0.5))
    with pytest.raises(ValueError, match="got False; start_from_teacher of version"):
        student(Foreign(trained), init=False)
    with pytest.raises(ValueError, match="has no teacher"):
        DiffusionModule(unet(), path=PATH, init="teacher")


def test_a_run_of_a_foreign_teacher_says_its_look_and_carries_its_licence(
    trained: UNet, capsys, tmp_path
) -> None:
    module = student(Foreign(trained))
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    said = " ".join(capsys.readouterr().out.split())
    assert "error of the teacher (of a linear filter)" in said
    metadata = torch.load(tmp_path / "a.ckpt", weights_only=True)["scm_lightning"]
    assert metadata["licence"] == "CC BY-NC-SA 4.0"
    on = DiffusionModule(unet(), path=PATH)
    assert on.licence is None
    begun = ConsistencyModule(unet(), path=PATH, init=str(tmp_path / "a.ckpt"))
    assert begun.licence == "CC BY-NC-SA 4.0"
    expected = module.ema.network.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in begun.student.state_dict().items())
    fit(begun).save_checkpoint(tmp_path / "b.ckpt")
    assert SavedRun.read(tmp_path / "b.ckpt").average().licence == "CC BY-NC-SA 4.0"


def test_labels_off_by_one_end_the_run_of_a_foreign_teacher(trained: UNet) -> None:
    with pytest.raises(ValueError, match=r"does not fit the data: .* label moved by -1"):
        fit(student(Foreign(trained)), offset=1)


def test_a_network_of_the_users_own_is_only_warned_of(capsys) -> None:
    fit(student(unet(), init=None))
    assert "the teacher does not fit the data" in " ".join(capsys.readouterr().err.split())


def test_the_look_draws_no_random_numbers_of_the_run(trained: UNet) -> None:
    found = []
    for teacher in (Foreign(trained), trained):
        torch.manual_seed(3)
        module = student(teacher, unet(), init=None)
        fit(module)
        found.append(torch.cat([x.detach().flatten() for x in module.student.parameters()]))
    assert torch.equal(*found)
