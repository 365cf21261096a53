# SPDX-License-Identifier: Apache-2.0
"""Teachers from checkpoints: the averaged weights, or one line that says why not."""

import pytest
import torch
from gaussian import PATH
from tiny import loader, trainer
from torch import nn

from scm_lightning import ConsistencyModule, DiffusionModule, TrigFlow
from scm_lightning.networks import MLP, DiT
from scm_lightning.objectives import PairVelocity, TeacherVelocity
from scm_lightning.teachers import FrozenTeacher, load_teacher, weights_mismatch


def mlp(num_blocks=2, num_classes=0):
    return MLP((3,), 16, num_blocks, emb_channels=8, num_classes=num_classes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A diffusion run of three steps and its checkpoint."""
    file = tmp_path_factory.mktemp("run") / "teacher.ckpt"
    module, fit = DiffusionModule(mlp(), PATH), trainer(3)
    fit.fit(module, loader())
    fit.save_checkpoint(file, weights_only=False)
    return module, file


def test_teacher_is_the_average_not_the_last_weights(run):
    module, file = run
    teacher = load_teacher(file, mlp(), PATH)
    for name, weight in teacher.state_dict().items():
        assert torch.equal(weight, module.ema.network.state_dict()[name])
    differs = [
        not torch.equal(weight, module.network.state_dict()[name])
        for name, weight in teacher.state_dict().items()
    ]
    assert any(differs)


def test_a_student_is_saved_without_its_teacher_and_resumes(run, tmp_path):
    """Four steps at once equal two, a checkpoint, and two; the file holds no teacher."""
    _, teacher = run

    def fit(steps, ckpt_path=None):
        torch.manual_seed(0)
        module = ConsistencyModule(mlp(), TeacherVelocity(), str(teacher), path=PATH)
        fit = trainer(steps)
        fit.fit(module, loader(), ckpt_path=ckpt_path)
        return module, fit

    _, half = fit(2)
    half.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)
    assert not [name for name in saved["state_dict"] if name.startswith("teacher")]
    assert saved["scm_lightning"]["module"] == "consistency"
    resumed, _ = fit(4, ckpt_path=str(tmp_path / "half.ckpt"))
    assert (int(resumed.ema.num_steps), int(resumed.ema.num_images)) == (4, 20)


def test_a_teacher_with_unsaved_buffers_is_left_out_and_kept():
    """A DiT's places are in no state: loading must not ask for them, nor change a weight."""
    module = nn.Sequential(nn.Linear(2, 3), FrozenTeacher(DiT((1, 4, 4), 2, 16, 1)))
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    state = module.state_dict()
    assert set(state) == {"0.weight", "0.bias"}
    module.load_state_dict(state)
    assert all(torch.equal(weight, before[name]) for name, weight in module.named_parameters())


def refused(file, network, path, match):
    with pytest.raises(ValueError, match=match) as caught:
        load_teacher(file, network, path)
    assert "\n" not in str(caught.value)


def test_misfits_are_refused_in_one_line(run, tmp_path):
    _, file = run
    refused(tmp_path / "none.ckpt", mlp(), PATH, "there is no checkpoint")
    refused(file, mlp(), TrigFlow(0.5), "trained with 0.7, the student has 0.5; set path.sigma")
    refused(file, mlp(num_blocks=3), PATH, "it has no weight 'blocks.2.inner.weight'; give")
    refused(file, mlp(num_blocks=1), PATH, "it has a weight 'blocks.1.inner.bias' too many")
    refused(file, mlp(num_classes=4), PATH, "it has no weight 'conditioning.label.weight'")
    refused(file, MLP((4,), 16, 2, 8), PATH, r"'input.weight' has shape \(16, 3\) where \(16, 4\)")


def test_foreign_files_are_refused(run, tmp_path):
    _, file = run
    (tmp_path / "text.ckpt").write_text("hello")
    refused(tmp_path / "text.ckpt", mlp(), PATH, "is not a checkpoint, or is damaged")
    (tmp_path / "half.ckpt").write_bytes(file.read_bytes()[:5000])
    refused(tmp_path / "half.ckpt", mlp(), PATH, "is not a checkpoint, or is damaged")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    refused(tmp_path / "other.ckpt", mlp(), PATH, "is not a checkpoint of scm_lightning")
    torch.save({"scm_lightning": print}, tmp_path / "code.ckpt")
    refused(tmp_path / "code.ckpt", mlp(), PATH, "cannot be read as a checkpoint")


def test_a_student_is_no_teacher(run, tmp_path):
    fit = trainer(1)
    fit.fit(ConsistencyModule(mlp(), PairVelocity(), path=PATH), loader())
    fit.save_checkpoint(tmp_path / "student.ckpt", weights_only=False)
    refused(tmp_path / "student.ckpt", mlp(), PATH, "is a consistency run; give")


def test_a_run_refuses_the_checkpoint_of_another_model(run):
    """On resume: another kind of run, another sigma_data, other weights."""
    _, file = run
    for module, match in [
        (ConsistencyModule(mlp(), PairVelocity(), path=PATH), "module consistency, got diffusion"),
        (DiffusionModule(mlp(), TrigFlow(0.71)), "with sigma_data 0.71, got 0.7"),
        (DiffusionModule(mlp(num_blocks=3), PATH), "does not fit the model: it has no weight"),
    ]:
        with pytest.raises(ValueError, match=match):
            trainer(5).fit(module, loader(), ckpt_path=str(file))


def test_mismatch_of_weights_is_none_where_they_fit():
    assert weights_mismatch(mlp().state_dict(), mlp()) is None
