# SPDX-License-Identifier: Apache-2.0
"""Classes that the data have and a network does not: one sentence, before any step or sample."""

import pytest
import torch
from gaussian import PATH
from lightning.pytorch import LightningDataModule
from tiny import loader, mlp, trainer
from torch.utils.data import DataLoader

from scm_lightning import ConsistencyModule, DiffusionModule
from scm_lightning.data import Batch, SampleRequest
from scm_lightning.networks import DiffusersNetwork, EDM2UNet
from scm_lightning.objectives import PairVelocity, TeacherVelocity
from scm_lightning.sampling import DiffusionSampling

SIGMA = PATH.sigma_data


def batches(labels, shape=(3,)):
    """One batch of five for every row of labels."""
    generator = torch.Generator().manual_seed(0)
    draw = [SIGMA * torch.randn(5, *shape, generator=generator) for _ in labels]
    made = [Batch(x0, torch.tensor(row)) for x0, row in zip(draw, labels, strict=True)]
    return DataLoader(made, batch_size=None)


def requests(*labels):
    made = SampleRequest(
        torch.arange(len(labels)), torch.tensor(labels, dtype=torch.int64), (3,), 0
    )
    return DataLoader([made], batch_size=None)


class Known(LightningDataModule):
    """Says how many classes it has, and hands on the first of them alone."""

    num_classes = 5

    def train_dataloader(self):
        return batches([[0] * 5])

    def predict_dataloader(self):
        return requests(0, 0)

    test_dataloader = val_dataloader = predict_dataloader


def unet(num_classes):
    return EDM2UNet((1, 4, 4), 8, (1,), 1, (), 8, num_classes=num_classes)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_numbers_of_classes_are_compared_where_both_are_known(stage):
    run, module = trainer(3, num_sanity_val_steps=0), DiffusionModule(mlp(num_classes=4), PATH)
    with pytest.raises(ValueError, match="the data have 5 classes, the network has 4; set num_cl"):
        getattr(run, stage)(module, datamodule=Known())
    assert run.global_step == 0
    assert module.batch_checks.first_samples == []


def test_classes_that_no_label_is_of_are_refused():
    """A network with classes on data that have none; without a word from the data, it may be."""
    without = Known()
    without.num_classes = 0
    without.train_dataloader = lambda: loader()
    with pytest.raises(ValueError, match="has 4 classes, but the data hand on no labels; set num"):
        trainer(3).fit(DiffusionModule(mlp(num_classes=4), PATH), datamodule=without)
    trainer(3).fit(DiffusionModule(mlp(num_classes=4), PATH), loader())
    with pytest.raises(ValueError, match="is the rate of a learned weighting"):
        DiffusionModule(mlp(), PATH, weighting_lr=0.1)
    with pytest.raises(ValueError, match="hides labels and conditions from a network, but"):
        trainer(3).fit(DiffusionModule(mlp(), PATH, condition_dropout=0.1), loader())


def test_every_network_is_looked_at():
    """A student of five classes, whose teacher knows four."""
    module = ConsistencyModule(
        mlp(num_classes=5),
        TeacherVelocity(),
        mlp(num_classes=4),
        init=None,
        path=PATH,
    )
    with pytest.raises(ValueError, match="the data have 5 classes, the network has 4"):
        trainer(3).fit(module, datamodule=Known())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 4, 1, 2, 3], "the data have a label 4, the network has 4 classes from 0"),
        ([0, -2, 1, 2, 3], "labels must be at least -1, got -2"),
    ],
)
def test_labels_are_looked_at_in_every_batch(row, message):
    """Long after the first 256 samples; -1, of no class, is taken."""
    labels = [[-1, 0, 1, 2, 3]] * 60 + [row]
    module = ConsistencyModule(mlp(num_classes=4), PairVelocity(), path=PATH)
    run = trainer(100)
    with pytest.raises(ValueError, match=message):
        run.fit(module, batches(labels))
    assert run.global_step == 60


def test_magnitude_preserving_networks_are_looked_at_too():
    module = DiffusionModule(unet(4), PATH)
    with pytest.raises(ValueError, match="a label 4, the network has 4 classes"):
        trainer(1).fit(module, batches([[0, 1, 2, 3, 4]], (1, 4, 4)))


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize(
    ("label", "message"), [(-1, "labels must be at least 0, got -1"), (4, "a label 4, the network")]
)
def test_samples_are_of_a_class_that_is_known(stage, label, message):
    module = DiffusionModule(mlp(num_classes=4), PATH)
    with pytest.raises(ValueError, match=message):
        getattr(trainer(1), stage)(module, requests(0, label))
    getattr(trainer(1), stage)(module, requests(0, 3))
    getattr(trainer(1), stage)(module, requests())  # of a process that has nothing to draw


def test_classes_of_a_diffusers_model_are_those_of_its_configuration():
    from diffusers import UNet2DModel

    options = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",)}
    options |= {"up_block_types": ("UpBlock2D",), "norm_num_groups": 4, "layers_per_block": 1}
    model = UNet2DModel(4, 1, 1, **options, num_class_embeds=4)
    with pytest.raises(ValueError, match="a label 4, the network has 4 classes"):
        trainer(1).fit(
            DiffusionModule(DiffusersNetwork(model), PATH), batches([[0, 1, 2, 3, 4]], (1, 4, 4))
        )
    model = UNet2DModel(4, 1, 1, **options)
    assert DiffusersNetwork(model).num_classes == 0


def test_a_prompt_is_of_no_class():
    """The label of none is refused of requests for classes, and is that of those by prompts."""
    sampling = DiffusionSampling(num_steps=2)
    module = DiffusionModule(mlp(num_classes=4), PATH, sampling=sampling)
    with pytest.raises(ValueError, match="labels must be at least 0, got -1"):
        trainer(1).predict(module, requests(-1, -1))
    (request,) = requests(-1, -1)
    prompts = DataLoader([request._replace(prompts=["a cat", "a dog"])], batch_size=None)
    (drawn,) = trainer(1).predict(module, prompts)
    assert drawn["teacher"].x0.shape == (2, 3)
