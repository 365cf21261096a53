# SPDX-License-Identifier: Apache-2.0
"""Networks of files that nobody vouches for: all of ours come back, and nothing else is built."""

import json

import pytest
import torch
from gaussian import PATH
from tiny import wake

import scm_lightning
from scm_lightning import networks
from scm_lightning.export import SamplingFacts, StudentSampling, build_network, can_be_built
from scm_lightning.export.network_of import network_names
from scm_lightning.networks import DiffusersNetwork
from scm_lightning.sampling import Churn, DiffusionSampling, EqualJumps, FreshNoise
from scm_lightning.storage import Export

IMAGE = {"data_shape": [3, 8, 8], "num_classes": 4, "guided": True}
DIFFUSERS = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [16, 24],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "layers_per_block": 1,
}
SPECS = {
    "MLP": {"data_shape": [5], "model_channels": 16, "time_embedding": {"features": "fourier"}},
    "UNet": {**IMAGE, "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1},
    "DiT": {**IMAGE, "model_channels": 16, "num_blocks": 1, "num_heads": 2, "two_times": True},
    "EDM2UNet": {**IMAGE, "model_channels": 16, "channel_mult": [1], "channels_per_head": 8},
    "VideoDiT": {"data_shape": [1, 2, 4, 4], "model_channels": 16, "num_blocks": 1, "num_heads": 2},
    "DiffusersNetwork": {
        "model": {"class_path": "diffusers.models.UNet2DModel", "init_args": DIFFUSERS}
    },
}


def spec_of(name, **further):
    return {"class_path": f"scm_lightning.networks.{name}", "init_args": {**SPECS[name], **further}}


def network_of(name):
    options = {n: tuple(x) if isinstance(x, list) else x for n, x in SPECS[name].items()}
    if name == "DiffusersNetwork":
        diffusers = pytest.importorskip("diffusers")
        return DiffusersNetwork(diffusers.UNet2DModel(**DIFFUSERS))
    if "time_embedding" in options:
        options["time_embedding"] = networks.TimeEmbedding(**options["time_embedding"])
    return getattr(networks, name)(**options)


@pytest.mark.parametrize("name", SPECS)
def test_a_network_comes_back_as_it_was(name):
    network = wake(network_of(name)).eval()
    spec, state = json.loads(json.dumps(spec_of(name))), torch.random.get_rng_state()
    assert can_be_built(spec)
    found = build_network(spec, network.state_dict())
    assert torch.equal(torch.random.get_rng_state(), state)
    shape = SPECS[name].get("data_shape", [3, 8, 8])
    u, t = torch.randn(2, *shape), torch.tensor([0.3, 1.1])
    given = (None, torch.tensor([1.2, 1.6])) if SPECS[name].get("guided") else ()
    given += (t / 2,) if SPECS[name].get("two_times") else ()
    with torch.no_grad():
        torch.testing.assert_close(found(u, t, *given), network(u, t, *given))
    assert not found.training
    assert not any(each.requires_grad for each in found.parameters())


def test_every_network_that_trains_is_among_them():
    """Those whose data have a shape; parts of networks are no harm."""
    assert {*SPECS} <= network_names().keys()


HOSTILE = {
    "import": ({"class_path": "os.system", "init_args": {"command": "true"}}, "got os.system"),
    "class": ({"class_path": "torch.nn.Linear", "init_args": {}}, "networks that can be built"),
    "package": ({"class_path": "evil.MLP", "init_args": {}}, "got evil.MLP"),
    "misspelt": ({"class_path": "UNett", "init_args": {}}, r"did you mean UNet\?"),
    "no_name": ({"class_path": 7, "init_args": {}}, "a class has a name"),
    "wide": (spec_of("MLP", model_channels=2**40), "arguments must be at most 16,777,216"),
    "wider": (spec_of("MLP", model_channels=2**23), "the weights are of another network"),
    "deep": (spec_of("MLP", num_blocks=2**23), "more than .* parts"),
    "unknown": (spec_of("MLP", widht=3), "MLP has no argument widht"),
    "kinds": (spec_of("MLP", data_shape={"a": 1}), "no MLP can be built of its arguments"),
    "nested": (
        {"class_path": "DiffusersNetwork", "init_args": {"model": {"class_path": "os.system"}}},
        "got os.system",
    ),
    "diffusers": (
        {
            "class_path": "DiffusersNetwork",
            "init_args": {"model": {"class_path": "diffusers.UNet2DModel.from_pretrained"}},
        },
        "got diffusers.UNet2DModel.from_pretrained",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_else_is_built(name, tmp_path):
    """In one line, from a file whose checksums are right, as whoever writes it can make them."""
    spec, said = HOSTILE[name]
    weights = network_of("MLP").state_dict()
    facts = SamplingFacts("consistency", PATH.sigma_data, spec, StudentSampling(FreshNoise()))
    file = tmp_path / "a.safetensors"
    Export("consistency", PATH.sigma_data, 3, "ema", "", weights, facts.entries()).write(file)
    with pytest.raises(ValueError, match=said) as caught:
        scm_lightning.load(file)
    assert "\n" not in str(caught.value)
    if name in ("import", "class", "nested"):
        assert not can_be_built(spec)


SAMPLINGS = [
    StudentSampling(FreshNoise(True), (1, 3), (1.2, 0.4), (1.5, 1.1), (1.0, 2.0)),
    StudentSampling(EqualJumps(), (4,)),
    DiffusionSampling(7, "dpm-2s", Churn(2.0), {"labels": 1.5}),
    DiffusionSampling(),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_facts_come_back(sampling):
    facts = SamplingFacts("x", 0.7, spec_of("MLP"), sampling, None, {"step": 3}, {"a": 1}, "MIT")
    found = SamplingFacts.of(Export("x", 0.7, 3, "ema", "", {}, facts.entries()))
    assert found.entries() == facts.entries()
    assert (found.licence, found.training, found.scores) == ("MIT", {"step": 3}, {"a": 1})
    if isinstance(sampling, DiffusionSampling):
        assert found.sampling == sampling


def test_the_times_are_listed_for_other_programs():
    entries = SamplingFacts("x", 0.7, sampling=SAMPLINGS[0]).entries()
    times = json.loads(entries["sampling"])["times"]
    assert times == {"1": [PATH.t_max()], "2": [PATH.t_max(), 1.2], "3": [PATH.t_max(), 1.2, 0.4]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sampling", '{"kind": "other"}'),
        ("sampling", '{"kind": "segments", "num_segments": 1e9}'),
        ("sampling", '{"kind": "solver", "num_steps": "many"}'),
        ("sampling", "[1]"),
        ("network", "{"),
        ("data", '{"shape": [1]}'),
        ("training", "[" * 100_000),
        ("scores", "7"),
    ],
)
def test_entries_of_another_kind_are_refused(name, text):
    with pytest.raises(ValueError, match="its entries are not those of an export"):
        SamplingFacts.of(Export("x", 0.7, 3, "ema", "", {}, {name: text}))


def test_weights_that_are_no_numbers_are_refused():
    network = wake(network_of("MLP"))
    weights = network.state_dict()
    name = next(reversed(weights))
    weights[name] = torch.full_like(weights[name], torch.nan)
    with pytest.raises(ValueError, match=f"{name} is not finite"):
        build_network(spec_of("MLP"), weights)


def test_a_table_that_no_weight_bounds_is_refused():
    """DiT of diffusers computes the embedding of places, which no file holds."""
    diffusers = pytest.importorskip("diffusers")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 2, "num_layers": 1}
    sizes |= {"norm_num_groups": 8, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 3}
    network = DiffusersNetwork(diffusers.DiTTransformer2DModel(**sizes))
    huge = {
        "class_path": "diffusers.DiTTransformer2DModel",
        "init_args": sizes | {"sample_size": 8000},
    }
    with pytest.raises(ValueError, match=r"tables of [\d,]+ numbers"):
        build_network(spec_of_diffusers(huge), network.state_dict())


def spec_of_diffusers(model):
    return {"class_path": "scm_lightning.networks.DiffusersNetwork", "init_args": {"model": model}}
