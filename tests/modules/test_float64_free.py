# SPDX-License-Identifier: Apache-2.0
"""A device without float64, such as Apple's, trains and samples: nothing is made in it."""

import pytest
import torch
from gaussian import PATH
from tiny import loader, mlp, trainer, wake
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from scm_lightning import ConsistencyModule, DiffusionModule
from scm_lightning.callbacks import Diagnostics
from scm_lightning.core import TangentWarmup, trigflow
from scm_lightning.data import RequestStream
from scm_lightning.objectives import (
    AlphaFlow,
    AlphaSchedule,
    Consistency,
    Discrete,
    MeanFlow,
    PairVelocity,
    Segments,
    TeacherVelocity,
)


class WithoutFloat64(TorchDispatchMode):
    """Refuses every operation that returns a tensor of float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor) and each.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"Cannot convert to float64: {func}")
        return out


def student(velocity, objective):
    network = mlp(two_times=objective.two_times)
    return ConsistencyModule(network, velocity, wake(mlp()), objective, None, PATH)


MODULES = {
    "sCT": lambda: student(PairVelocity(), Consistency(warmup=TangentWarmup(3))),
    "sCD": lambda: student(TeacherVelocity(), Consistency()),
    "discrete": lambda: student(TeacherVelocity(), Discrete(7)),
    "segments": lambda: student(TeacherVelocity(), Segments(2)),
    "alpha-Flow": lambda: student(PairVelocity(), AlphaFlow(schedule=AlphaSchedule(0, 1))),
    "diffusion": lambda: DiffusionModule(mlp(), PATH, weighting="learned"),
    "MeanFlow": lambda: student(PairVelocity(), MeanFlow()),
}


@pytest.mark.parametrize("name", MODULES)
def test_training_and_sampling_make_no_float64(name, monkeypatch, tmp_path):
    """Two steps, the test samples, diagnostics; and float64 is used where there is some."""
    module = MODULES[name]()

    def run(callbacks):
        quiet = trainer(2, callbacks=callbacks, default_root_dir=tmp_path)
        quiet.fit(module, loader())
        orders = RequestStream(3, 0, 2, (3,), 0, 0, 1)
        quiet.test(module, DataLoader(orders, batch_size=None), verbose=False)

    with pytest.raises(TypeError, match="Cannot convert to float64"), WithoutFloat64():
        run([])
    monkeypatch.setattr(trigflow, "DEVICES_WITHOUT_FLOAT64", {"cpu"})
    with WithoutFloat64():
        run([Diagnostics(every_n_steps=1)])
    assert all(parameter.isfinite().all() for parameter in module.parameters())
