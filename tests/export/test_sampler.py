# SPDX-License-Identifier: Apache-2.0
"""Samples of an export: those of the module that it is of, in every way to sample."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussian import PATH
from tiny import wake

import scm_lightning
from scm_lightning import ConsistencyModule, DiffusionModule
from scm_lightning.core import GuidanceProposal
from scm_lightning.data import SampleRequest, ShardIndex, Split, StoredCondition
from scm_lightning.export import Sampler, SamplingFacts, StudentSampling
from scm_lightning.export.facts import without_shards
from scm_lightning.export.sampler import SHIPPED
from scm_lightning.metrics import DigitFeatures, frechet_distance, statistics
from scm_lightning.networks import MLP, DiT
from scm_lightning.objectives import AlphaFlow, Consistency, MeanFlow, Segments, TeacherVelocity
from scm_lightning.preparation import load_digit_splits
from scm_lightning.sampling import Churn, DiffusionSampling, FewStepSampling
from scm_lightning.storage import Export
from scm_lightning.text import Words

SHAPE, CLASSES, NUM = (1, 2, 4), ["cat", "dog", "owl"], 7
SMALL = {"data_shape": [*SHAPE], "model_channels": 24, "num_blocks": 2, "emb_channels": 16}


def index(**further):
    nothing = {"train": Split([]), "heldout": Split([])}
    fields = {"num_classes": 3, "class_names": CLASSES, "mean": [3.0], "std": [5.0], **further}
    return ShardIndex(
        splits=nothing, shape=SHAPE, dtype="uint8", max_value=16.0, source="", **fields
    )


def sampler_of(tmp_path, network, sampling, options, kind="MLP", data=None):
    """By the file, and by nothing else."""
    spec = {"class_path": f"scm_lightning.networks.{kind}", "init_args": options}
    data = index() if data is None else data
    facts = SamplingFacts("consistency", PATH.sigma_data, spec, sampling, data)
    file = tmp_path / "a.safetensors"
    weights = network.state_dict()
    Export(facts.kind, PATH.sigma_data, 3, "ema", "", weights, facts.entries()).write(file)
    return scm_lightning.load(file)


def drawn_by(module, name, **further):
    request = SampleRequest(torch.arange(NUM), torch.arange(NUM) % 3, SHAPE, 5, **further)
    with torch.no_grad():
        return module.draw(request, module.draws())[name].x0.numpy()


STUDENTS = {
    "fresh": (Consistency(), {"intermediate_times": [1.2, 0.7]}, False),
    "ends": (AlphaFlow(), {}, False),
    "segments": (Segments(3), {}, False),
    "jumps": (MeanFlow(), {"num_steps": [1, 4]}, False),
    "guided": (Consistency(), {"guidance": [1.3, 1.7]}, True),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_samples_are_those_of_the_student(name, tmp_path):
    objective, given, guided = STUDENTS[name]
    options = {**SMALL, "num_classes": 3, "guided": guided, "two_times": objective.two_times}
    proposal = GuidanceProposal(1.0, 2.0) if guided else None
    network = wake(MLP(**options))
    module = ConsistencyModule(
        network,
        *([TeacherVelocity(), wake(MLP(**SMALL, num_classes=3))] if guided else []),
        objective=objective,
        init=None,
        path=PATH,
        guidance=proposal,
        sampling=FewStepSampling(**given),
    )
    asked = module.sampling
    intermediate = asked.intermediate_times if name in ("fresh", "ends", "guided") else ()
    numbers = objective.steps.own_numbers(asked.num_steps, intermediate)
    scales, between = (tuple(asked.scales), (1.0, 2.0)) if guided else (None, None)
    steps = objective.steps
    sampling = StudentSampling(steps, tuple(numbers), tuple(intermediate), scales, between)
    sampler = sampler_of(tmp_path, network, sampling, options)
    for number in numbers:
        expected = drawn_by(module, f"{number}_step")
        assert expected.std() > 0.1
        found = sampler.sample_arrays(n=NUM, steps=number, seed=5)
        assert np.array_equal(found, expected)
        in_parts = sampler.sample_arrays(n=NUM, steps=number, seed=5, batch_size=2)
        np.testing.assert_allclose(in_parts, expected, atol=3e-6)
    if name == "guided":
        other = sampler.sample_arrays(n=NUM, steps=1, seed=5, guidance=1.9)
        assert not np.allclose(other, sampler.sample_arrays(n=NUM, steps=1, seed=5), atol=1e-3)


@pytest.mark.parametrize("churn", [None, Churn(3.0, S_tmin=0.1)])
def test_samples_are_those_of_the_diffusion_model(churn, tmp_path):
    sampling = DiffusionSampling(3, "heun", churn, 1.6)
    network = wake(MLP(**SMALL, num_classes=3))
    module = DiffusionModule(network, PATH, sampling=sampling)
    sampler = sampler_of(tmp_path, network, sampling, {**SMALL, "num_classes": 3})
    expected = drawn_by(module, "teacher")
    assert np.array_equal(sampler.sample_arrays(n=NUM, seed=5), expected)
    assert not np.allclose(sampler.sample_arrays(n=NUM, seed=5, steps=4), expected, atol=1e-3)


def test_texts_are_drawn_as_prompts_are(tmp_path):
    """Encoded as the captions were, padded with a mask, without a class."""
    options = {"data_shape": [*SHAPE], "model_channels": 16, "num_blocks": 1, "num_heads": 2}
    options |= {"num_classes": 3, "text_channels": 32}
    network, words = wake(DiT(**options)), Words(32, 3)
    stored = StoredCondition((3, 32), "float16", True, "", "words", words.sha256)
    sampling = StudentSampling(Consistency().steps, (1, 2), (1.1,))
    data = index(conditions={"text": stored})
    sampler = sampler_of(tmp_path, network, sampling, options, "DiT", data)
    texts = ["a red cat", "owl"]
    named = stored.batched("text", [tokens.astype("float16") for tokens in words.encode(texts)])
    request = SampleRequest(torch.arange(2), torch.tensor([-1, -1]), SHAPE, 0, named)
    module = ConsistencyModule(network, path=PATH)
    with torch.no_grad():
        expected = module.draw(request, module.draws())["2_step"].x0.numpy()
    assert np.array_equal(sampler.sample_arrays(texts=texts), expected)
    assert abs(expected[0] - expected[1]).max() > 0.1
    with pytest.raises(ValueError, match=r"every text must have words in it, got '\?'"):
        sampler.sample(texts="?")
    with pytest.raises(ValueError, match="takes the condition text"):
        sampler.sample()


@pytest.fixture(scope="module")
def shipped():
    return scm_lightning.load()


def test_a_sampler_says_what_it_is(shipped):
    assert (
        repr(shipped) == "Sampler(consistency, shape=(1, 8, 8), classes=0, 1, 2, ..., steps=(1, 2))"
    )


def test_classes_go_by_name_or_number(tmp_path):
    network, sampling = wake(MLP(**SMALL, num_classes=3)), StudentSampling(Consistency().steps)
    sampler = sampler_of(tmp_path, network, sampling, {**SMALL, "num_classes": 3})
    of_names = sampler.sample_arrays(["dog", "cat"], 5, steps=1)
    assert np.array_equal(of_names, sampler.sample_arrays([1, 0, 1, 0, 1], steps=1))
    assert len(sampler.sample_arrays("owl", steps=1)) == 1
    assert np.array_equal(
        sampler.sample_arrays(n=5, steps=1), sampler.sample_arrays([*CLASSES, 0, "1"], steps=1)
    )
    for wrong in ("dgo", 3, -2, "7"):
        with pytest.raises(ValueError, match=f"there is no class {wrong}"):
            sampler.sample([wrong], steps=1)
    with pytest.raises(ValueError, match="dgo; did you mean dog\\?; the 3 classes are cat, dog"):
        sampler.sample("dgo", steps=1)
    with pytest.raises(ValueError, match="steps must be 1, the numbers"):
        sampler.sample(steps=2)


def test_pictures_are_the_rounded_arrays(shipped):
    arrays, pictures = shipped.sample_arrays(n=12, seed=3), shipped.sample(n=12, seed=3)
    data = shipped.facts.data
    pixels = (arrays * data.std[0] / shipped.facts.sigma_data + data.mean[0]) / data.max_value
    for picture, own in zip(pictures, pixels, strict=True):
        assert picture.mode == "L"
        expected = (np.clip(own[0], 0, 1) * 255).round()
        assert abs(np.asarray(picture, float) - expected).max() <= 1  # of float32


def test_the_shipped_student_has_the_distance_of_the_table(shipped):
    """Over 2,000 samples of two steps: 0.049 in configs/digits_scd.yaml, 0.050 of seed 0."""
    features = DigitFeatures()
    images = torch.as_tensor(load_digit_splits()["train"][0]).float() / 16
    drawn = shipped.to_pictures(shipped.sample_arrays(n=2000, batch_size=500))
    distance = frechet_distance(*(statistics(features(each).features) for each in (images, drawn)))
    assert distance == pytest.approx(shipped.facts.scores["fd/2_step"]["value"], rel=0.01)
    assert distance < 0.055
    assert SHIPPED.stat().st_size < 4e6


def test_lightning_is_not_imported(tmp_path):
    code = (
        "import sys, scm_lightning; from scm_lightning.cli import main;"
        "assert len(scm_lightning.load().sample(['3', '7'], steps=2, seed=0)) == 2;"
        f"main(['sample', '--n=4', '--out={tmp_path}/a.png']);"
        "sys.exit('lightning' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (tmp_path / "a.png").stat().st_size > 100


def test_what_a_file_does_not_say_is_named(tmp_path, shipped):
    export = Export.read(SHIPPED)
    without = {name: each for name, each in export.entries.items() if name != "sampling"}
    with pytest.raises(ValueError, match="does not say how it is sampled; export it from its run"):
        Sampler.of(replace(export, entries=without))
    without = {name: each for name, each in export.entries.items() if name != "network"}
    with pytest.raises(ValueError, match=r"which network it is of; .* network=\.\.\."):
        Sampler.of(replace(export, entries=without))
    arguments = json.loads(export.entries["network"])["init_args"]
    del arguments["time_embedding"]
    given = Sampler.of(replace(export, entries=without), MLP(**arguments))
    expected = shipped.sample_arrays(n=3)
    assert np.array_equal(given.sample_arrays(n=3), expected)
    with pytest.raises(ValueError, match="the given network does not fit"):
        Sampler.of(export, MLP(**{**arguments, "num_classes": 4}))
    without = {name: each for name, each in export.entries.items() if name != "data"}
    assert np.array_equal(Sampler.of(replace(export, entries=without)).sample_arrays(n=3), expected)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("network", {"class_path": None}, "a class has a name"),
        ("sampling", {"num_steps": []}, "no number of steps"),
        ("sampling", {"guidance": []}, "no scale of guidance"),
        ("data", {"num_classes": 20, "class_names": []}, "have 20 classes, its network knows 10"),
        ("training", {"teacher": "a\n# b"}, "control characters"),
    ],
)
def test_entries_of_another_hand_are_refused(name, change, said):
    export = Export.read(SHIPPED)
    entry = {**json.loads(export.entries[name]), **change}
    with pytest.raises(ValueError, match=said):
        Sampler.of(replace(export, entries={**export.entries, name: json.dumps(entry)}))


@pytest.mark.parametrize(
    ("source", "said"),
    [("/home/ada/pictures/cats", "cats"), ("data/cats", "data/cats"), ("org/cats", "org/cats")],
)
def test_a_file_does_not_say_where_its_data_lie(source, said):
    """It may be published."""
    assert without_shards(replace(index(), source=source)).source == said


def test_a_licence_does_not_steer_the_terminal():
    export = Export.read(SHIPPED)
    with pytest.raises(ValueError, match="control characters"):
        Sampler.of(replace(export, entries={**export.entries, "licence": "MIT\x1b[31m"}))
