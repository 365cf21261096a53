# SPDX-License-Identifier: Apache-2.0
"""What every module does around a step: forced weights before the averages, measured data."""

import pytest
import torch
from gaussian import PATH
from tiny import loader, mlp, trainer, wake
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from scm_lightning import ConsistencyModule, DiffusionModule
from scm_lightning.data import Batch
from scm_lightning.modules import PowerFunction
from scm_lightning.modules.statistics import WHOLE_TOLERANCE
from scm_lightning.networks import MLP, TimeEmbedding
from scm_lightning.networks.magnitude import MPConv2d, MPLinear, mp_silu
from scm_lightning.objectives import AdaptiveVSD, PairVelocity, TeacherVelocity

SIGMA = PATH.sigma_data


class MagnitudePreserving(nn.Module):
    """F of three numbers, by one layer of each kind and a gain that nothing normalises."""

    def __init__(self):
        super().__init__()
        self.input = MPLinear(4, 7)
        self.pixel = MPConv2d(7, 6, 1)
        self.output = MPLinear(6, 3)
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, u, t, labels=None, guidance=None):
        h = mp_silu(self.input(torch.cat([u, t[:, None].to(u.dtype)], dim=1)))
        h = mp_silu(self.pixel(h[:, :, None, None]).flatten(1))
        return self.gain * self.output(h)


def copy_of(network):
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def rows_of_unit_mean_square(weights):
    """Written out, row by row; whatever is no matrix or kernel stays."""
    found = {}
    for name, weight in weights.items():
        rows = [row / row.square().mean().sqrt() for row in weight] if weight.ndim > 1 else None
        found[name] = weight if rows is None else torch.stack(rows)
    return found


def fit_recorded(module, network, num_steps):
    """Weights as the optimizer leaves them, at every step, and as the next forward sees them."""
    stepped, seen = [], []

    class Recorder(torch.optim.Adam):
        def step(self, closure=None):
            loss = super().step(closure)
            stepped.append(copy_of(network))
            return loss

    network.register_forward_pre_hook(lambda *_: seen.append(copy_of(network)))
    module.optimizer = lambda groups: Recorder(groups, lr=0.05)
    trainer(num_steps).fit(module, loader())
    return stepped, seen


@pytest.mark.parametrize("kind", ["diffusion", "consistency"])
def test_weights_are_forced_after_every_step_and_before_the_averages(kind):
    """Against the optimizer's own result, normalised by hand, and the average of that."""
    torch.manual_seed(0)
    network = MagnitudePreserving()
    ema = PowerFunction(18**-0.5)  # its exponent gamma is 1
    if kind == "diffusion":
        module = DiffusionModule(network, PATH, ema=ema)
    else:
        module = ConsistencyModule(network, PairVelocity(), path=PATH, ema=ema)
    stepped, _ = fit_recorded(module, network, 4)
    forced = [rows_of_unit_mean_square(weights) for weights in stepped]
    average = {name: torch.zeros_like(weight) for name, weight in forced[0].items()}
    for step, (raw, weights) in enumerate(zip(stepped, forced, strict=True), start=1):
        # Adam's step of 0.05 on every weight changes a row's mean square: there is work to do.
        for name in ("input.weight", "pixel.weight", "output.weight"):
            assert float((raw[name] - weights[name]).abs().max()) > 1e-3
        beta = (1 - 1 / step) ** 2
        average = {name: beta * average[name] + (1 - beta) * weights[name] for name in weights}
    for found, expected in (
        (copy_of(network), forced[-1]),
        (copy_of(module.ema.network), average),
    ):
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6)


def test_the_second_network_of_vsd_is_forced_too():
    """Whenever it is called; it has no average that could follow it too early."""
    torch.manual_seed(0)
    module = ConsistencyModule(
        MagnitudePreserving(),
        TeacherVelocity(),
        wake(mlp(), seed=1),
        init=None,
        path=PATH,
        terms=[AdaptiveVSD()],
    )
    stepped, seen = fit_recorded(module, module.terms[0].fake, 3)
    assert len(seen) == 6  # in the student's term and in its own
    assert not torch.equal(stepped[0]["input.weight"], stepped[-1]["input.weight"])
    for weights in seen:
        expected = rows_of_unit_mean_square(weights)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)


class TwoValues(IterableDataset):
    """Endless samples of `mean` plus and minus `spread`, as many of each in every batch."""

    def __init__(self, mean, spread):
        self.x0 = torch.full((64, 3), mean)
        self.x0[::2] += spread
        self.x0[1::2] -= spread

    def __iter__(self):
        while True:
            yield Batch(self.x0, None)


def measure(mean, spread):
    """A run long enough to measure 256 samples."""
    module = DiffusionModule(mlp(), PATH)
    trainer(5).fit(module, DataLoader(TwoValues(mean, spread), batch_size=None))
    return module


INSIDE, OUTSIDE = WHOLE_TOLERANCE - 0.01, WHOLE_TOLERANCE + 0.01


@pytest.mark.parametrize("mean", [0.0, -3 * SIGMA])
@pytest.mark.parametrize("factor", [1.0, 1 / INSIDE, INSIDE])
def test_data_of_any_mean_are_taken_by_their_spread_about_it(mean, factor):
    assert measure(mean, factor * SIGMA).batch_checks.first_samples is None


@pytest.mark.parametrize("mean", [0.0, 0.8 * SIGMA, -3 * SIGMA])
@pytest.mark.parametrize("factor", [0.6, 1 / OUTSIDE, OUTSIDE])
def test_data_of_another_spread_are_refused_whatever_their_mean(mean, factor):
    """0.8^2 + 0.6^2 = 1: the root mean square alone would take the first for the data."""
    measured = factor * SIGMA
    with pytest.raises(ValueError, match=f"sigma_data = 0.7, got {measured:.4g} over 256 samples"):
        measure(mean, factor * SIGMA)


def test_a_network_that_was_built_for_another_path_is_refused():
    """The path owns sigma_data."""
    network = MLP((3,), 16, 1, 8, time_embedding=TimeEmbedding("log", sigma_data=2 * SIGMA))
    with pytest.raises(ValueError, match=r"sigma_data must be that of the path, 0.7, got 1.4"):
        DiffusionModule(network, PATH)


def test_a_loader_of_tuples_is_refused():
    """DataLoader makes a list of what a data set of tuples gives: no `Batch`."""
    tuples = DataLoader([(torch.zeros(3), 1)] * 4, batch_size=2)
    with pytest.raises(ValueError, match=r"Batch\(x0, .*, nulls\), got a list; return that"):
        trainer(1).fit(DiffusionModule(mlp(), path=PATH), tuples)


def test_a_checkpoint_is_loaded_with_the_arguments_of_its_run(tmp_path):
    model = DiffusionModule(mlp(), path=PATH)
    run = trainer(1)
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match="pass those of the run by name, such as its network"):
        DiffusionModule.load_from_checkpoint(tmp_path / "run.ckpt")
    loaded = DiffusionModule.load_from_checkpoint(tmp_path / "run.ckpt", network=mlp(), path=PATH)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
