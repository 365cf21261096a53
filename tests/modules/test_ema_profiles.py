# SPDX-License-Identifier: Apache-2.0
"""Several averages in one module: each by its own profile, saved, resumed, snapshotted."""

from multiprocessing import get_context

import pytest
import torch
from gaussian import PATH
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import GaussianBatches, loader, trainer
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.data import DataLoader

from scm_lightning import ConsistencyModule, DiffusionModule
from scm_lightning.callbacks import EMASnapshots
from scm_lightning.callbacks.ema_snapshots import whole_weights
from scm_lightning.core import (
    gamma_from_sigma_rel,
    post_hoc_coefficients,
    post_hoc_residual,
    power_function_decay,
    profile_inner_products,
)
from scm_lightning.modules import EMA, HalfLife, PowerFunction
from scm_lightning.objectives import PairVelocity
from scm_lightning.storage.snapshot import ends_of_profiles, read_snapshots, sum_of_snapshots

PROFILES = [PowerFunction(0.05), PowerFunction(0.10)]


def module(ema=PROFILES):
    torch.manual_seed(0)
    return DiffusionModule(Linear(), PATH, ema=ema)


class Linear(nn.Module):
    """F = weight u + shift, with a parameter that is there under two names and a buffer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.shift = nn.Parameter(torch.zeros(3))
        self.tied = self.shift
        self.register_buffer("scale", torch.ones(()))

    def forward(self, u, t, labels=None, guidance=None):
        return self.scale * self.weight * u + self.shift


class Repeatable(DiffusionModule):
    """Data that depend on the step alone."""

    def training_step(self, batch, batch_idx):
        generator = torch.Generator().manual_seed(self.trainer.global_step)
        return (self.network(torch.randn(4, 3, generator=generator), None) ** 2).mean()


class Recorder(EMASnapshots):
    """Snapshots of every step, and the weights after it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        super().on_train_batch_end(trainer, pl_module, *args)
        self.weights.append(pl_module.network.weight.detach().clone())


def test_every_average_follows_by_its_own_profile():
    """Both averages of five steps, added up by hand."""
    run, recorder = module(), Recorder(10**9)
    fit = trainer(5, callbacks=[recorder])
    recorder.on_train_start = recorder.on_train_end = lambda *args: None
    fit.fit(run, loader())
    assert [average.counts() for average in run.averages()] == [(5, 25), (5, 25)]
    for sigma_rel, average in run.power_function_averages().items():
        expected = torch.ones(3, dtype=torch.float64)
        for step, weight in enumerate(recorder.weights, start=1):
            beta = average.profile.decay(5 * (step - 1), 5)
            expected = beta * expected + (1 - beta) * weight
        torch.testing.assert_close(average.network.weight.double(), expected, rtol=1e-6, atol=0)
        assert sigma_rel == average.profile.sigma_rel
    narrow, wide = (average.network.weight for average in run.averages())
    assert not torch.equal(narrow, wide)


def test_a_run_whose_batches_change_is_reconstructed(tmp_path):
    """Averages are sums over the images, and their snapshots add up to one that was tracked.

    From a to b images of t, a step's weights count (b / t)^(gamma + 1) - (a / t)^(gamma + 1). The
    reconstruction differs at most by residual ||p*|| ||w - mean||, and by float32.
    """
    sizes = [3] * 9 + [11] * 12
    batches = [next(iter(GaussianBatches(size))) for size in sizes]
    run, recorder = module([*PROFILES, PowerFunction(0.075)]), Recorder(1, "float32")
    fit = trainer(len(sizes), callbacks=[recorder], default_root_dir=tmp_path)
    fit.fit(run, DataLoader(batches, batch_size=None))
    weights, ends = torch.stack(recorder.weights).double(), torch.tensor([0, *sizes]).cumsum(0)
    for sigma_rel, average in run.power_function_averages().items():
        shares = ((ends / ends[-1]).double() ** (gamma_from_sigma_rel(sigma_rel) + 1)).diff()
        tracked = average.network.weight.double()
        torch.testing.assert_close(tracked, shares @ weights, rtol=1e-6, atol=0)
    snapshots = [each for each in read_snapshots(tmp_path / "ema") if each.sigma_rel != 0.075]
    found = ends_of_profiles(snapshots)
    assert found == ends[1:].repeat_interleave(2).tolist()
    gammas = [gamma_from_sigma_rel(each.sigma_rel) for each in snapshots]
    target = (float(ends[-1]), gamma_from_sigma_rel(0.075))
    c = post_hoc_coefficients(found, gammas, *target)
    total = sum_of_snapshots(zip(c.tolist(), snapshots, strict=True))["weight"]
    norm = profile_inner_products([target[0]], [target[1]], [target[0]], [target[1]])[0, 0] ** 0.5
    images = torch.tensor(sizes).double()
    spread = (weights - images @ weights / images.sum()).square()
    bound = post_hoc_residual(c, found, gammas, *target) * norm * (images @ spread).sqrt()
    rounding = sum(abs(c)) * 2.0**-24 * weights.abs().max()
    assert ((total - tracked).abs() <= bound + rounding).all()
    assert (bound + rounding < (run.averages()[0].network.weight - tracked).abs() / 4).all()


def test_the_first_profile_is_sampled_from_and_keeps_its_name():
    run = module([HalfLife(), *PROFILES])
    names = set(run.state_dict())
    assert {"ema.network.weight", "further_emas.1.network.weight", "ema.num_steps"} <= names
    assert list(run.power_function_averages()) == [0.05, 0.10]
    assert set(module(HalfLife()).state_dict()) == {
        name for name in names if not name.startswith("further_emas")
    }
    student = ConsistencyModule(Linear(), PairVelocity(), path=PATH, ema=PROFILES)
    assert len(student.averages()) == 2


def test_a_run_with_two_profiles_resumes(tmp_path):
    """Three steps, a checkpoint and two more equal five, in weights and counters."""

    def fit(steps, ckpt_path=None):
        run, fit = Repeatable(Linear(), PATH, ema=PROFILES), trainer(steps)
        fit.fit(run, loader(), ckpt_path=ckpt_path)
        return run, fit

    whole, _ = fit(5)
    _, half = fit(3)
    half.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    resumed, _ = fit(5, str(tmp_path / "half.ckpt"))
    assert [average.counts() for average in resumed.averages()] == [(5, 25), (5, 25)]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


def test_counters_are_read_once_and_again_after_loading(monkeypatch):
    """Reading a buffer waits for the GPU: the steps after the first must not."""
    network = Linear()
    ema, other = EMA(network, PROFILES[0]), EMA(network, PROFILES[0])
    for _ in range(7):
        other.update(network, 4)
    ema.update(network, 3)
    with monkeypatch.context() as patch:
        for reading in ("__int__", "__bool__", "__index__", "item", "tolist"):
            patch.setattr(torch.Tensor, reading, lambda *_: pytest.fail("waits for the device"))
        ema.update(network, 3)
        assert ema.counts() == (2, 6)
    assert (int(ema.num_steps), int(ema.num_images)) == (2, 6)
    nn.ModuleList([ema]).load_state_dict(nn.ModuleList([other]).state_dict())
    assert ema.counts() == (7, 28)
    nn.init.constant_(network.weight, 3.0)
    ema.update(network, 4)
    gamma = 16.97
    beta = power_function_decay(4, 28, gamma)
    torch.testing.assert_close(
        ema.network.weight[0].item(), beta + 3 * (1 - beta), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_snapshots_hold_the_averages(dtype, tmp_path):
    """Every second of five steps and the last, of both widths; nothing half written is left."""
    run = module([HalfLife(), *PROFILES])
    options = {"default_root_dir": tmp_path, "accumulate_grad_batches": 2}
    trainer(5, callbacks=[EMASnapshots(2, dtype)], **options).fit(run, loader())
    names = sorted(file.name for file in (tmp_path / "ema").iterdir())
    assert names == [f"000000{n}-{w}.safetensors" for n in (2, 4, 5) for w in (0.05, 0.1)]
    for average, width in zip(run.averages()[1:], (0.05, 0.1), strict=True):
        file = tmp_path / "ema" / f"0000005-{width}.safetensors"
        weights = load_file(file)
        assert sorted(weights) == ["shift", "tied", "weight"]
        for name, weight in weights.items():
            assert torch.equal(weight, average.network.state_dict()[name].to(getattr(torch, dtype)))
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {
                "format_version": "1",
                "step": "5",
                "images": "50",
                "sigma_rel": str(width),
                "sigma_data": "0.7",
                "module": "diffusion",
                "buffers": '["scale"]',
            }


def test_a_run_that_goes_on_sets_aside_the_snapshots_it_will_write_again(tmp_path, capsys):
    """From a checkpoint of step 2 of a run that came to step 6, on to step 4."""

    def fit(steps, ckpt_path=None):
        fit = trainer(steps, callbacks=[EMASnapshots(1)], default_root_dir=tmp_path)
        fit.fit(module(PowerFunction(0.1)), loader(), ckpt_path=ckpt_path)
        return fit

    fit(2).save_checkpoint(tmp_path / "two.ckpt", weights_only=False)
    early = (tmp_path / "ema" / "0000002-0.1.safetensors").stat()
    fit(6, str(tmp_path / "two.ckpt"))
    assert "damaged" not in capsys.readouterr().out
    fit(4, str(tmp_path / "two.ckpt"))
    printed = " ".join(capsys.readouterr().out.split())
    assert f"training starts at step 2: 4 snapshots in {tmp_path}/ema that are later" in printed
    aside = sorted(int(file.name[:7]) for file in (tmp_path / "ema.old-1").iterdir())
    assert aside == [3, 4, 5, 6]
    left = sorted(int(file.name[:7]) for file in (tmp_path / "ema").iterdir())
    assert left == [1, 2, 3, 4]
    assert (tmp_path / "ema" / "0000002-0.1.safetensors").stat().st_mtime_ns == early.st_mtime_ns


def gather(rank, folder):
    """One of two processes, with half of a network each."""
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=2)
    network, mesh = Linear(), init_device_mesh("cpu", (2,))
    network.weight = nn.Parameter(distribute_tensor(torch.arange(3.0), mesh, [Shard(0)]))
    weights = whole_weights(network, torch.float16, keep=rank == 0)
    torch.save(weights, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_sharded_weights_are_gathered_by_all_and_kept_by_one(tmp_path):
    processes = [get_context("fork").Process(target=gather, args=(r, tmp_path)) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["weight"].tolist() == [0.0, 1.0, 2.0]
    assert (first["weight"].dtype, second) == (torch.float16, {})


def test_impossible_averages_are_refused(tmp_path):
    for ema in ([], [HalfLife(), HalfLife()]):
        with pytest.raises(ValueError, match="one profile or several different ones"):
            module(ema)
    with pytest.raises(ValueError, match="every_n_steps of snapshots must be at least 1, got 0"):
        EMASnapshots(0)
    with pytest.raises(ValueError, match="dtype of snapshots must be float16"):
        EMASnapshots(1, "float64")
    fit = trainer(1, callbacks=[EMASnapshots(1)], default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="DiffusionModule has none; set ema to"):
        fit.fit(module(HalfLife()), loader())
