# SPDX-License-Identifier: Apache-2.0
"""Original files of DiT and SiT as teachers, beside diffusers' own transformer."""

import argparse
import math

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from teachers.sources_dit import CLASSES, HEADS, SHAPE, SIGMA_DATA, SIZES, write_dit
from teachers.toy import toy_data

from scm_lightning.core import NULL_LABEL, Conditions, TrigFlow
from scm_lightning.core.guidance import Guided
from scm_lightning.teachers import DiTTeacher, SiTTeacher, first_look
from scm_lightning.teachers.dit_network import OriginalDiT
from scm_lightning.teachers.dit_original import read_dit

KINDS = {"dit": DiTTeacher, "sit": SiTTeacher}
NUM = 7


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    """Kind and file of a trained network."""
    return request.param, write_dit(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def weights(trained):
    return torch.load(trained[1], weights_only=True)


def teacher(kind, file):
    made = KINDS[kind](str(file), num_heads=HEADS)
    made.on_path(TrigFlow(SIGMA_DATA))
    return made


def look(its, scale=1.0, offset=0):
    x0, labels = toy_data(40, SHAPE, CLASSES, SIGMA_DATA, seed=999)
    given = Conditions((labels + offset) % CLASSES)
    return first_look(its, scale * x0, given, its.path, CLASSES)


class Frequencies(torch.nn.Module):
    """Features of the time of the original, cosines first, in float64; diffusers has /127."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def forward(self, time):
        half = SIZES.num_features // 2
        table = [math.exp(-math.log(10000) * i / self.steps) for i in range(half)]
        angles = time.double()[:, None] * torch.tensor(table, dtype=torch.float64)
        return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def of_diffusers(found, steps=SIZES.num_features // 2):
    """The same network by other people's code. Its features are of 256 channels: replaced."""
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=SIZES.width // HEADS,
        in_channels=SIZES.in_channels,
        out_channels=SIZES.out_channels,
        num_layers=SIZES.depth,
        sample_size=SHAPE[1],
        patch_size=SIZES.patch_size,
        num_embeds_ada_norm=CLASSES,
        norm_num_groups=8,
        norm_eps=1e-6,
    )
    new = {}
    # Its own parts have other widths here: the perceptron's, and the first layer of the time.
    for block in net.transformer_blocks:
        block.ff.net[0].proj = torch.nn.Linear(SIZES.width, SIZES.hidden)
        block.ff.net[2] = torch.nn.Linear(SIZES.hidden, SIZES.width)
        emb = block.norm1.emb
        emb.time_proj = Frequencies(steps)
        emb.timestep_embedder.linear_1 = torch.nn.Linear(SIZES.num_features, SIZES.width)
    for suffix in ("weight", "bias"):
        new[f"pos_embed.proj.{suffix}"] = found[f"x_embedder.proj.{suffix}"]
        new[f"proj_out_2.{suffix}"] = found[f"final_layer.linear.{suffix}"]
        new[f"proj_out_1.{suffix}"] = found[f"final_layer.adaLN_modulation.1.{suffix}"]
        for n in range(SIZES.depth):
            here, there = f"blocks.{n}", f"transformer_blocks.{n}"
            qkv = found[f"{here}.attn.qkv.{suffix}"].chunk(3)
            for letter, x in zip("qkv", qkv, strict=True):
                new[f"{there}.attn1.to_{letter}.{suffix}"] = x
            new[f"{there}.attn1.to_out.0.{suffix}"] = found[f"{here}.attn.proj.{suffix}"]
            new[f"{there}.ff.net.0.proj.{suffix}"] = found[f"{here}.mlp.fc1.{suffix}"]
            new[f"{there}.ff.net.2.{suffix}"] = found[f"{here}.mlp.fc2.{suffix}"]
            new[f"{there}.norm1.linear.{suffix}"] = found[f"{here}.adaLN_modulation.1.{suffix}"]
            time = f"{there}.norm1.emb.timestep_embedder.linear"
            new[f"{time}_1.{suffix}"] = found[f"t_embedder.mlp.0.{suffix}"]
            new[f"{time}_2.{suffix}"] = found[f"t_embedder.mlp.2.{suffix}"]
    for n in range(SIZES.depth):
        table = f"transformer_blocks.{n}.norm1.emb.class_embedder.embedding_table.weight"
        new[table] = found["y_embedder.embedding_table.weight"]
    net.load_state_dict(new)
    net.pos_embed.pos_embed = found["pos_embed"]
    return net.eval().double()


def denoiser(kind, net):
    """D(x, sigma, labels) written out by the papers' formulas, the steps found by numpy."""
    kept = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    log_ratio = 0.5 * np.log((1 - kept) / kept)

    def denoise(x, sigma, labels):
        sigma = sigma.double()[:, None, None, None]
        labels = torch.where(labels == NULL_LABEL, CLASSES, labels)
        if kind == "dit":
            n = np.interp(np.log(sigma.flatten().numpy()), log_ratio, np.arange(1000.0))
            noisy = x.double() / torch.sqrt(1 + sigma**2)
            found = net(noisy, torch.from_numpy(n), labels, return_dict=False)[0]
            return x - sigma * found[:, : SHAPE[0]]
        tau = 1 / (1 + sigma)
        noisy = tau * x.double()
        found = net(noisy, tau.flatten(), labels, return_dict=False)[0]
        return noisy + (1 - tau) * found[:, : SHAPE[0]]

    return denoise


MIDDLE = torch.linspace(0.1, 1.4, NUM, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, NULL_LABEL, 1, 0, 2])


def test_f_is_that_of_another_implementation(trained, weights):
    """In float64 to 1e-8, at both ends of its noise, with the row for no class."""
    kind, file = trained
    its = teacher(kind, file).double()
    low, high = its.t_range
    times = torch.linspace(max(low, 1e-3), min(high, 1.57), NUM, dtype=torch.float64)
    found = its.check(denoiser(kind, of_diffusers(weights)), SHAPE, LABELS, times=times)
    assert found.error < 1e-8
    assert found.num_times == NUM


def test_other_frequencies_of_the_time_are_found(trained, weights):
    """Those of diffusers, which reads DiT.pt unchanged: it is another network at large n."""
    kind, file = trained
    its = teacher(kind, file).double()
    times = torch.full((NUM,), min(its.t_range[1], 1.5), dtype=torch.float64)
    other = of_diffusers(weights, steps=SIZES.num_features // 2 - 1)
    with pytest.raises(ValueError, match="to 1e-08, got an error"):
        its.check(denoiser(kind, other), SHAPE, LABELS, times=times)


def test_a_reversed_time_is_found(trained, weights):
    kind, file = trained
    its = teacher(kind, file).double()
    network = its.network.network
    network.from_noise = not network.from_noise
    with pytest.raises(ValueError, match="to 1e-08, got an error"):
        its.check(denoiser(kind, of_diffusers(weights)), SHAPE, LABELS, times=MIDDLE)


def test_a_trained_file_passes_the_first_look(trained):
    kind, file = trained
    found = look(teacher(kind, file))
    assert found.misfit() == ""
    assert sum(found.teacher) < 0.9 * sum(found.linear)
    for offset in (1, -1):
        assert f"moved by {-offset:+d}" in look(teacher(kind, file), offset=offset).misfit()
    assert "linear filter" in look(teacher(kind, file), scale=0.18215).misfit()


@pytest.mark.parametrize("mistake", ["sign", "rows", "columns first", "the other's"])
def test_planted_mistakes_do_not_pass_the_first_look(mistake, trained, weights, tmp_path):
    kind, _ = trained
    made = dict(weights)
    last, places = "final_layer.linear.", made["pos_embed"]
    if mistake == "sign":
        made |= {name: -x for name, x in weights.items() if name.startswith(last)}
    if mistake == "rows":  # as pixel_shuffle has them
        made |= {
            name: x.unflatten(0, (2, 2, -1)).movedim(2, 0).flatten(0, 2)
            for name, x in weights.items()
            if name.startswith(last)
        }
    if mistake == "columns first":
        made["pos_embed"] = places.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
    torch.save(made, tmp_path / "made.pt")
    other = {"dit": "sit", "sit": "dit"}[kind]
    its = teacher(other if mistake == "the other's" else kind, tmp_path / "made.pt")
    assert "linear filter" in look(its).misfit()


def test_labels_and_guidance(trained):
    """No label is the row for none; a guided F is the formula of both."""
    kind, file = trained
    its = teacher(kind, file)
    u, t = torch.randn(5, *SHAPE), torch.linspace(0.2, 1.4, 5)
    labels = torch.tensor([0, 1, 2, 0, 1])
    none = its(u, t, torch.full_like(labels, NULL_LABEL))
    assert torch.equal(its(u, t), none)
    with_label = its(u, t, labels)
    assert not torch.allclose(with_label, none, atol=1e-3)
    guided = Guided(its, Conditions(labels), torch.full((5,), 2.0))(u, t)
    torch.testing.assert_close(guided, none + 2 * (with_label - none))


def test_what_it_says_of_itself(tmp_path):
    dit, sit = (teacher(kind, write_dit(tmp_path, kind, steps=0)) for kind in KINDS)
    assert "predicts the noise" in dit.described()
    assert "CC BY-NC 4.0" in dit.described()
    assert "divided" not in sit.described()
    assert (dit.num_classes, sit.num_classes) == (CLASSES, CLASSES)
    assert sit.t_range == (0.0, math.pi / 2)
    assert dit.t_range[0] == pytest.approx(math.atan(0.0100005 / SIGMA_DATA), rel=1e-4)
    unit = SIGMA_DATA / 0.18215
    assert dit.latents_misfit([0.0] * 2, [unit] * 2) == ""
    assert "times 0.18215" in dit.latents_misfit([0.0] * 2, [unit, 1.0])
    assert "times 0.18215" in sit.latents_misfit([1.0] * 2, [unit] * 2)


def test_heads_are_known_by_the_width(tmp_path):
    """No tensor tells them: published widths have theirs, others need the option."""
    file = write_dit(tmp_path, steps=0)
    with pytest.raises(ValueError, match="num_heads must divide its 48 channels"):
        DiTTeacher(str(file))
    with pytest.raises(ValueError, match="num_heads must divide its 48 channels"):
        DiTTeacher(str(file), num_heads=5)
    weights = torch.load(file, weights_only=True)
    for width, heads in ((384, 6), (768, 12), (1024, 16), (1152, 16)):
        sized = weights | {"x_embedder.proj.weight": torch.zeros(width, 2, 2, 2)}
        assert type(SIZES).of(sized).num_heads == heads


@pytest.mark.parametrize(
    ("width", "depth", "millions"),
    [(384, 12, 33), (768, 12, 130), (1024, 24, 458), (1152, 28, 675)],
)
def test_published_sizes_have_their_published_numbers_of_weights(width, depth, millions):
    """Table 1 of arXiv 2212.09748."""
    heads = {384: 6, 768: 12, 1024: 16, 1152: 16}[width]
    published = type(SIZES)(width, depth, heads, 2, 256, 4, 8, 1000, 256, 4 * width)
    with torch.device("meta"):
        network = OriginalDiT(published)
    assert round(sum(each.numel() for each in network.parameters()) / 1e6) == millions


def test_half_precision_is_read_as_float32(tmp_path):
    file = write_dit(tmp_path, steps=0)
    whole = torch.load(file, weights_only=True)
    torch.save({name: x.half() for name, x in whole.items()}, file)
    its = teacher("dit", file)
    assert {x.dtype for x in its.state_dict().values()} == {torch.float32}


def refusal(content, file):
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match="must") as caught:
        read_dit(file, HEADS)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(str(file))
    return said


def test_bad_files_are_refused_in_one_line(tmp_path):
    file = write_dit(tmp_path, steps=0)
    whole, weights = file.read_bytes(), torch.load(file, weights_only=True)
    settings = argparse.Namespace(model="DiT-XL/2")
    checkpoint = {"model": weights, "ema": weights, "opt": {}, "args": settings}
    assert "a checkpoint of train.py" in refusal(checkpoint, file)
    assert "weights by name" in refusal({"ema": weights}, file)
    assert "weights by name" in refusal([1, 2], file)
    assert "download it again" in refusal(whole[: len(whole) // 2], file)
    less = {k: x for k, x in weights.items() if not k.startswith("blocks.1.attn")}
    assert "blocks.1.attn.qkv.weight is missing" in refusal(less, file)
    more = weights | {"blocks.0.attn.q_norm.weight": torch.ones(12)}
    assert "blocks.0.attn.q_norm.weight is not known" in refusal(more, file)
    far = weights | {"blocks.99999999.attn.qkv.weight": torch.ones(12)}
    assert "is missing" in refusal(far, file)
    wide = weights | {"blocks.0.mlp.fc2.weight": torch.ones(48, 12)}
    assert "[48, 12] for [48, 96]" in refusal(wide, file)
    assert "x_embedder.proj.weight must have 4 axes" in refusal({"w": torch.ones(2)}, file)
    oblong = weights | {"pos_embed": torch.ones(1, 15, 48)}
    assert "places must be those of a square" in refusal(oblong, file)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"
    assert "a Git LFS pointer" in refusal(pointer, file)
    assert "an HTML page" in refusal(b"<!doctype html><html>", file)
    assert "an empty file" in refusal(b"", file)
    save_file(weights, file)
    assert "a safetensors file" in refusal(file.read_bytes(), file)
    with pytest.raises(FileNotFoundError):
        read_dit(tmp_path / "missing.pt")


def test_images_of_another_size_are_refused(tmp_path):
    its = teacher("dit", write_dit(tmp_path, steps=0))
    with pytest.raises(ValueError, match="takes samples of shape"):
        its(torch.randn(5, 2, 16, 16), torch.full((5,), 0.5))
