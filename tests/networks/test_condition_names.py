# SPDX-License-Identifier: Apache-2.0
"""Conditions that a network takes, found out and compared with those that the data have."""

import pytest
import torch
from gaussian import PATH
from tiny import mlp, trainer
from torch import nn
from torch.utils.data import DataLoader

from scm_lightning import ConsistencyModule, DiffusionModule
from scm_lightning.data import Batch
from scm_lightning.networks import MLP
from scm_lightning.networks.condition_names import condition_names
from scm_lightning.networks.shapes import check_takes_end
from scm_lightning.objectives import TeacherVelocity
from scm_lightning.sampling import DiffusionSampling, FewStepSampling


def network_of(forward):
    """A module with a forward of some signature and one weight."""
    owner = type("Owner", (nn.Module,), {"forward": forward})()
    owner.weight = nn.Parameter(torch.zeros(()))
    return owner


SIGNATURES = {
    "own": (lambda self, u, t, labels=None, guidance=None: u, (), ()),
    "other words": (lambda self, x, time, y=None, w=None: x, (), ()),
    "flow map": (lambda self, u, t, labels, guidance, t_end: u, (), ()),
    "augmented": (lambda self, u, t, labels=None, guidance=None, augment=None: u, (), ()),
    "behind": (lambda self, u, t, labels, guidance, text, mask=None: u, ("text",), ("mask",)),
    "by keyword": (lambda self, u, t, labels=None, *, pose: u, ("pose",), ()),
    "any": (lambda self, u, t, *rest, **named: u, (), None),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_names_are_those_behind_the_places(name):
    forward, needed, optional = SIGNATURES[name]
    found = condition_names(network_of(forward))
    assert (found.needed, found.optional) == (needed, optional)


def test_what_a_network_declares_goes_before_its_forward():
    """Of what it declares, a mask alone may be missing: data of one length have none."""
    network = network_of(lambda self, u, t, labels=None, guidance=None, text=None: u)
    network.condition_names = ("text", "text_mask")
    found = condition_names(network)
    assert (found.needed, found.optional) == (("text",), ("text_mask",))
    found.check(["text"])
    assert condition_names(mlp()).takes_none


def fitted(forward, conditions, module=DiffusionModule):
    batch = Batch(PATH.sigma_data * torch.randn(5, 3), None, conditions=conditions)
    network = network_of(forward)
    if module is ConsistencyModule:
        teacher = network_of(lambda self, u, t, labels=None, guidance=None: u)
        module = module(network, TeacherVelocity(), teacher, None, None, PATH)
    else:
        module = module(network, PATH)
    trainer(1).fit(module, DataLoader([batch], batch_size=None))


ZERO = {"text": torch.zeros(5, 4, 2)}
TAKES_TEXT = SIGNATURES["behind"][0]
REFUSED = {
    "missing": (TAKES_TEXT, {}, r"Owner takes the condition text, but the data have none; prep"),
    "other": (TAKES_TEXT, ZERO | {"pose": torch.zeros(5)}, r"condition pose, but this Owner takes"),
    "unknown": (SIGNATURES["own"][0], ZERO, r"condition text, but this Owner takes none; build"),
    "in the place of guidance": (
        lambda self, u, t, labels=None, text=None: u,
        ZERO,
        r"forward has text in the place of one of these; move it behind guidance",
    ),
    "of another length": (TAKES_TEXT, {"text": torch.zeros(4, 2)}, r"of 5 samples.*\(4, 2\)"),
    "a number": (TAKES_TEXT, {"text": 0.5}, r"condition text must be a tensor .* got 0\.5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_do_not_fit_are_refused_before_the_first_step(name):
    """A step would fail otherwise: none of these networks can be trained."""
    forward, conditions, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        fitted(forward, conditions)


def test_a_teacher_without_the_students_condition_is_refused():
    with pytest.raises(ValueError, match="condition text, but this Owner takes none"):
        fitted(TAKES_TEXT, ZERO, ConsistencyModule)


def test_a_flow_map_may_need_a_condition():
    """It takes t_end, whatever comes behind by name."""
    check_takes_end(network_of(lambda self, u, t, labels, guidance, t_end, *, text: u), "MeanFlow")
    with pytest.raises(ValueError, match="add t_end"):
        check_takes_end(network_of(lambda self, u, t, labels, guidance, *, text: u), "MeanFlow")


def test_options_that_name_other_conditions_are_refused_before_the_first_step():
    batch = Batch(PATH.sigma_data * torch.randn(5, 3), None, conditions=ZERO)
    network = network_of(TAKES_TEXT)
    sampling = FewStepSampling(teacher=DiffusionSampling(guidance={"tekst": 2.0}))
    options = (None, None, PATH)
    modules = {
        "condition_dropout": DiffusionModule(network, PATH, condition_dropout={"tekst": 0.1}),
        "sampling.teacher.guidance": ConsistencyModule(
            network, TeacherVelocity(), network_of(TAKES_TEXT), *options, sampling=sampling
        ),
    }
    for option, module in modules.items():
        with pytest.raises(ValueError, match=rf"{option} must be .* have, text, got tekst"):
            trainer(1).fit(module, DataLoader([batch], batch_size=None))


def test_guidance_apart_needs_each_hidden_alone():
    sampling = DiffusionSampling(guidance={"text": 2.0})
    for dropout in (0.1, {"text": 0.0}, {"labels": 0.1}):
        module = DiffusionModule(
            network_of(TAKES_TEXT), PATH, condition_dropout=dropout, sampling=sampling
        )
        with pytest.raises(ValueError, match=r"without each alone, got .*; give a probability"):
            module.setup("fit")


def test_dropout_of_what_no_network_takes_is_refused():
    module = DiffusionModule(MLP((3,), 8, 1), PATH, condition_dropout=0.1)
    with pytest.raises(ValueError, match=r"but this one takes none, got 0\.1; set num_classes"):
        trainer(1).fit(module, DataLoader([Batch(torch.randn(5, 3), None)], batch_size=None))
