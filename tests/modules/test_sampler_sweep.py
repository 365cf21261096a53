# SPDX-License-Identifier: Apache-2.0
"""A module with a sweep: which rows `scm test` draws, from which average, and what is refused."""

import pytest
import torch
from gaussian import PATH
from tiny import mlp, wake

from scm_lightning import ConsistencyModule, DiffusionModule
from scm_lightning.callbacks.sweep import sampling_options
from scm_lightning.core import GuidanceProposal
from scm_lightning.data import SampleRequest
from scm_lightning.modules import HalfLife, PowerFunction
from scm_lightning.objectives import MeanFlow, TeacherVelocity
from scm_lightning.sampling import DiffusionSampling, FewStepSampling, SamplerSweep, SweepPoint

REQUEST = SampleRequest(torch.arange(5), None, (3,), 7)
PROFILES = [PowerFunction(0.05), HalfLife(500_000)]


def student(sweep, **options):
    """A module whose averages have weights of their own."""
    sampling = FewStepSampling(sweep=sweep)
    module = ConsistencyModule(mlp(), path=PATH, sampling=sampling, **options)
    for seed, average in enumerate(module.averages()):
        wake(average.network, seed)
    return module


def mean_flow(sweep, **options):
    sampling = FewStepSampling(sweep=sweep)
    return ConsistencyModule(
        mlp(two_times=True), objective=MeanFlow(), path=PATH, sampling=sampling, **options
    )


def test_every_average_has_its_own_rows():
    """The first one's is what the run draws anyway, from the same noise; the other's differs."""
    module = student(SamplerSweep((1, 2), (0.8, 1.1), ema="all"), ema=PROFILES)
    drawn = module.test_step(REQUEST, 0)
    assert list(drawn)[:3] == ["1_step", "2_step", "1_step ema=0.05"]
    assert torch.equal(drawn["1_step ema=0.05"].x0, drawn["1_step"].x0)
    assert torch.equal(drawn["2_step t_mid=1.1 ema=0.05"].x0, drawn["2_step"].x0)
    assert drawn["2_step t_mid=1.1 ema=0.5M"].nfe == 2
    different = ["1_step", "1_step ema=0.5M", "2_step", "2_step t_mid=1.1 ema=0.5M"]
    different += ["2_step t_mid=0.8 ema=0.05", "2_step t_mid=0.8 ema=0.5M"]
    assert len(drawn) == 2 + 2 * 3
    for place, one in enumerate(different):
        for other in different[:place]:
            assert float((drawn[one].x0 - drawn[other].x0).abs().max()) > 1e-3
    module.ema = module.averages()[1]
    assert torch.equal(module.validation_step(REQUEST, 0)["1_step"].x0, drawn[different[1]].x0)


def test_only_test_sweeps():
    module = student(SamplerSweep((1, 2, 3), (0.8,)))
    assert list(module.validation_step(REQUEST, 0)) == ["1_step", "2_step"]
    assert list(module.predict_step(REQUEST, 0)) == ["noise", "1_step", "2_step"]
    rows = ["1_step", "2_step", "2_step t_mid=0.8", "3_step t_mid=0.8"]
    assert list(module.test_step(REQUEST, 0)) == rows
    assert list(student(None).test_step(REQUEST, 0)) == ["1_step", "2_step"]


def test_every_number_of_steps_has_its_own_scale():
    """As the paper's students: 1.5 in one step, 1.4 in two, and the last in more."""
    drawn = {}
    for guidance in ((1.5, 1.4), 1.5, 1.4):
        sampling = FewStepSampling((1, 2, 3), (1.1, 0.6), guidance=guidance)
        module = ConsistencyModule(
            mlp(guided=True),
            TeacherVelocity(),
            path=PATH,
            guidance=GuidanceProposal(),
            sampling=sampling,
        )
        wake(module.ema.network)
        drawn[guidance] = {n: each.x0 for n, each in module.validation_step(REQUEST, 0).items()}
    both = drawn[(1.5, 1.4)]
    for name, scale in (("1_step", 1.5), ("2_step", 1.4), ("3_step", 1.4)):
        assert torch.equal(both[name], drawn[scale][name])
        assert not torch.equal(drawn[1.5][name], drawn[1.4][name])


def test_a_scale_that_nothing_is_told_is_refused():
    with pytest.raises(ValueError, match=r"needs a guided network, got 1\.4"):
        ConsistencyModule(mlp(), path=PATH, sampling=FewStepSampling(guidance=1.4))
    teacher = DiffusionModule(mlp(), path=PATH, sampling=DiffusionSampling(guidance=1.4))
    with pytest.raises(ValueError, match=r"got 1\.4 and condition_dropout 0; set"):
        teacher.setup("fit")


def test_a_guided_student_is_swept_over_scales():
    network = mlp(guided=True)
    module = ConsistencyModule(
        network,
        TeacherVelocity(),
        path=PATH,
        guidance=GuidanceProposal(),
        sampling=FewStepSampling(guidance=1.3, sweep=SamplerSweep((1,), guidance=(1.0, 1.3, 2.0))),
    )
    wake(module.ema.network)
    drawn = {name: samples.x0 for name, samples in module.test_step(REQUEST, 0).items()}
    assert torch.equal(drawn["1_step guidance=1.3"], drawn["1_step"])
    assert not torch.allclose(drawn["1_step guidance=1"], drawn["1_step guidance=2"])


def test_mean_flow_is_swept_over_steps_and_averages():
    module = mean_flow(SamplerSweep((1, 3), ema=[1]), ema=PROFILES)
    drawn = module.test_step(REQUEST, 0)
    assert list(drawn) == ["1_step", "2_step", "1_step ema=0.5M", "3_step ema=0.5M"]
    assert drawn["3_step ema=0.5M"].nfe == 3


def test_what_cannot_be_swept_is_refused_before_training():
    with pytest.raises(ValueError, match=r"needs a guided network, got 1\.5"):
        student(SamplerSweep(guidance=(1.5,)))
    with pytest.raises(ValueError, match="counts the run's averages from 0"):
        student(SamplerSweep(ema=(1,)))
    with pytest.raises(ValueError, match="4 steps need 3 intermediate_times"):
        student(SamplerSweep((4,)))
    with pytest.raises(ValueError, match="MeanFlow goes to 0 in equal steps"):
        mean_flow(SamplerSweep(t_mid=(0.8,)))


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ("1_step ema=0.05", {"num_steps": [1]}),
        ("2_step t_mid=0.8 ema=0.05", {"num_steps": [2], "intermediate_times": [0.8]}),
        (
            "2_step t_mid=0.8 ema=0.5M",
            {
                "sweep.num_steps": [2],
                "sweep.t_mid": [0.8],
                "sweep.guidance": [],
                "sweep.ema": [1],
            },
        ),
    ],
)
def test_options_that_sample_as_a_row(row, options):
    """The module's own options; a sweep of one point for another average."""
    module = student(SamplerSweep((1, 2), (0.8, 1.0), ema="all"), ema=PROFILES)
    assert sampling_options(module, module.sweep_points()[row]) == options


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_options_of_a_point_make_it_a_way_of_the_run(num_steps):
    """The same samples from the same noise, up to the six digits of a time."""
    point = SweepPoint(num_steps, t_mid=None if num_steps == 1 else 0.65)
    module = student(None)
    options = sampling_options(module, point)
    expected = module.draw(REQUEST, {"it": module.draw_at(point)})["it"]
    module.sampling = FewStepSampling(**options)
    (found,) = module.validation_step(REQUEST, 0).values()
    torch.testing.assert_close(found.x0, expected.x0, rtol=0, atol=1e-5)
    assert found.nfe == expected.nfe == num_steps


@pytest.mark.parametrize(
    ("profile", "name"),
    [
        (PowerFunction(0.05), "0.05"),
        (HalfLife(), "0.5M"),
        (HalfLife(8800), "0.0088M"),
        (HalfLife(2e6, ramp_up=None), "2M,no_ramp_up"),
        (HalfLife(2e6, ramp_up=0.1), "2M,ramp_up=0.1"),
    ],
)
def test_short_names_of_profiles(profile, name):
    assert profile.short_name == name
