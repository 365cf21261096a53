# SPDX-License-Identifier: Apache-2.0
"""Any module as a teacher: ten lines, and its own denoiser to compare with."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scm_lightning.core import (
    EDMProcess,
    RectifiedFlowProcess,
    TrigFlow,
    VPProcess,
    expand_time,
)
from scm_lightning.teachers import AdaptedTeacher, check_conversion

PATH, SHAPE = TrigFlow(0.7), (3, 4)


class Denoiser(nn.Module):
    """Somebody's denoiser D(x, sigma), with an own way to use the noise's level."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.label = nn.Embedding(num_classes, 4)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        s = expand_time(sigma, x)
        known = 0 if labels is None else self.label(labels)[:, None]
        return x / (1 + s**2) + s / (1 + s) * torch.tanh(self.inner(x / (1 + s)) + known)


class MyTeacher(AdaptedTeacher):
    def __init__(self, path: str) -> None:
        net = Denoiser()
        net.load_state_dict(load_file(path))
        process = EDMProcess(TrigFlow(), predicts="sample")  # a denoiser D(x, sigma)
        super().__init__(net, process, noise_range=(0.002, 80.0), num_classes=5)


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    save_file(Denoiser().state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_ten_lines_make_a_teacher_that_agrees_with_the_modules_own_denoiser(file):
    teacher = MyTeacher(str(file))
    teacher.on_path(PATH)
    own = Denoiser()
    own.load_state_dict(load_file(file))
    labels = torch.tensor([0, 4, 1, 2, 3, 3, 0])
    assert teacher.check(own, SHAPE, labels).error < 1e-5
    assert teacher.double().check(own.double(), SHAPE, labels).error < 1e-12
    assert "divided by sin t: up to 350 times" in teacher.described()
    assert teacher.own_network() is teacher.network


@pytest.mark.parametrize("data_scale", [1.0, 0.5])
@pytest.mark.parametrize(
    ("process", "predicts"),
    [
        (RectifiedFlowProcess(PATH), "flow_prediction"),
        (RectifiedFlowProcess(PATH), "sample"),
        (VPProcess(PATH), "epsilon"),
        (VPProcess(PATH), "v_prediction"),
        (EDMProcess(PATH), "epsilon"),
    ],
)
def test_every_process_agrees_with_its_own_denoiser_written_out(process, predicts, data_scale):
    torch.manual_seed(0)
    net = nn.Linear(4, 4).double()

    class Theirs(nn.Module):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return net(x) + expand_time(time, x)

    process = type(process)(PATH, predicts=predicts)
    teacher = AdaptedTeacher(
        Theirs(), process, noise_range=(0.01, 40.0), data_scale=data_scale
    ).double()
    teacher.register_module("counted", net)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        if isinstance(process, RectifiedFlowProcess):
            time = sigma / (1 + sigma)
            a, s = 1 - time, time
        elif isinstance(process, VPProcess):
            a = 1 / (1 + sigma**2).sqrt()
            s, q = sigma * a, (1 + sigma**2).log()
            time = (-0.1 + (0.01 + 2 * 19.9 * q).sqrt()) / 19.9
        else:
            a, s, time = torch.ones_like(sigma), sigma, sigma
        a, s = expand_time(a, x), expand_time(s, x)
        out = Theirs()(a * x, time)
        return {
            "epsilon": (a * x - s * out) / a,
            "sample": out,
            "v_prediction": a * a * x - s * out,
            "flow_prediction": a * x - s * out,
        }[predicts]

    assert teacher.check(denoiser, SHAPE).error < 1e-10


def test_a_wrong_conversion_is_refused_in_one_line(file):
    teacher = MyTeacher(str(file))
    teacher.network.process = EDMProcess(TrigFlow(1.0), predicts="epsilon")
    own = Denoiser()
    with pytest.raises(ValueError, match=r"the denoiser of its own code to 0.0001, got"):
        teacher.check(own, SHAPE, torch.arange(7) % 5)
    labels = torch.arange(7) % 5
    with pytest.raises(ValueError, match="an error of inf"):
        check_conversion(teacher, lambda x, sigma, labels: x * torch.nan, SHAPE, labels)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf")])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ValueError, match="data_scale must be a positive number"):
        AdaptedTeacher(Denoiser(), EDMProcess(PATH), data_scale=scale)
