# SPDX-License-Identifier: Apache-2.0
"""Networks of EDM2 and edm2_sCM against their own formulas, in float64, and what a mistake does."""

import copy
import math

import pytest
import torch
from storage.persistent_replica import tree, write_persistent
from teachers.edm_reference import output
from teachers.sources_edm import weights
from teachers.sources_edm2 import (
    HEAD,
    LATENT_SHAPE,
    NUM_CLASSES,
    SHAPE,
    SIGMA_DATA,
    Source,
    trained,
    write_edm2,
    write_edm2_scm,
)
from teachers.toy import toy_data

from scm_lightning.core import NULL_LABEL, Conditions, TrigFlow
from scm_lightning.core.guidance import Guided
from scm_lightning.networks import EDM2UNet, UNet
from scm_lightning.networks.edm2_blocks import CosineAttention, GainModulation
from scm_lightning.teachers import EDM2SCMTeacher, EDM2Teacher, first_look, transplant
from scm_lightning.teachers.edm2_scm import EDM2SCMFile

PATH = TrigFlow(SIGMA_DATA)
LOW, HIGH = math.atan(0.002 / SIGMA_DATA), math.atan(80 / SIGMA_DATA)
T = torch.tensor([LOW, 0.3, 0.9, 1.4, HIGH, 0.02], dtype=torch.float64)
LABELS = torch.tensor([0, 4, 2, 1, 3, 3])
WRITERS = {"EDM2": (write_edm2, EDM2Teacher), "edm2_sCM": (write_edm2_scm, EDM2SCMTeacher)}


def stored(p, dtype):
    """Tensors as a file of that type gives them back, in float64; positional frequencies exact."""
    found = {name: each.to(dtype).double() for name, each in p.items()}
    if "unet.emb_pos.freqs" in found:  # rounded in the file, but those of training are meant
        i = torch.arange(len(found["unet.emb_pos.freqs"]), dtype=torch.float64)
        found["unet.emb_pos.freqs"] = 10000.0 ** -(i / (len(i) - 1))
    return found


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@torch.no_grad()
def test_F_is_that_of_the_published_formulas(randn, tmp_path, kind, dtype):
    """At both ends of the times too, and in float32 to 1e-5."""
    write, teacher = WRITERS[kind]
    source, u = Source(is_scm=kind != "EDM2"), randn(6, *SHAPE)
    p = stored(trained(source), dtype)
    expected = source.F(p, u, T, LABELS)
    found = teacher(str(write(tmp_path, dtype=dtype)))
    assert (found.t_range[0], found.t_range[1]) == pytest.approx((LOW, HIGH))
    single = found(u.float(), T.float(), LABELS)
    assert float((single - expected).norm() / expected.norm()) < 1e-5
    F = found.double()(u, T, LABELS)
    torch.testing.assert_close(F, expected, rtol=1e-9, atol=1e-9)
    assert 0.2 < float(expected.std()) < 5
    if kind == "EDM2":  # the denoiser of EDM, of x = x_t / cos t
        sigma = (SIGMA_DATA * T.tan())[:, None, None, None]
        x_t = SIGMA_DATA * u
        c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
        c_out = sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()
        output = source.output(p, u, sigma.flatten().log() / 4, LABELS)
        x0 = c_skip * (x_t / T.cos()[:, None, None, None]) + c_out * output
        torch.testing.assert_close(PATH.consistency(F, x_t, T), x0, rtol=1e-8, atol=1e-8)


def look(teacher):
    x0, labels = toy_data(64, SHAPE, NUM_CLASSES, SIGMA_DATA, seed=77)
    return first_look(teacher, x0, Conditions(labels), PATH, NUM_CLASSES)


def flip_sign(network):
    network.out_gain.neg_()


def take_rows_as_they_are(network):
    """Queries, keys and values as if they were stored one after the other."""
    for module in network.modules():
        if isinstance(module, CosineAttention):
            w = module.qkv.weight
            heads = w.view(3, -1, HEAD, *w.shape[1:]).permute(1, 2, 0, 3, 4, 5)
            w.copy_(heads.reshape(w.shape))


def draw_frequencies_anew(network):
    position = network.conditioning.position
    position.load_state_dict(type(position)(position.frequencies.numel()).state_dict())


def forget_gains(network):
    for module in network.modules():
        if isinstance(module, GainModulation):
            module.gain.zero_()


def number_labels_from_one(network):
    weight = network.conditioning.label.weight
    weight.copy_(weight.roll(1, dims=1))


DANGERS = {
    "sign": (flip_sign, "worse than a linear filter"),
    "qkv": (take_rows_as_they_are, ""),
    "frequencies": (draw_frequencies_anew, ""),
    "gains": (forget_gains, ""),
    "labels": (number_labels_from_one, "every label moved"),
}


@pytest.mark.parametrize("danger", DANGERS)
@torch.no_grad()
def test_a_mistake_in_the_map_is_seen(tmp_path, danger):
    """By its numbers always, and by the first look where it costs as much as a linear filter."""
    teacher = EDM2Teacher(str(write_edm2(tmp_path)))
    assert look(teacher).misfit() == ""
    wrong = copy.deepcopy(teacher)
    torch.manual_seed(11)
    DANGERS[danger][0](wrong.network)
    u = torch.randn(6, *SHAPE)
    F, other = teacher(u, T.float(), LABELS), wrong(u, T.float(), LABELS)
    assert float((F - other).norm() / F.norm()) > 0.05
    assert DANGERS[danger][1] in look(wrong).misfit()


@torch.no_grad()
def test_the_network_without_classes_stands_for_no_class(randn, tmp_path):
    """Guidance leads from its F to that of the classes; without one, no class is refused."""
    classes, none = Source(), Source(num_classes=0)
    file, other = write_edm2(tmp_path), write_edm2(tmp_path, num_classes=0)
    teacher = EDM2Teacher(str(file), str(other)).double()
    u, scale = randn(6, *SHAPE), torch.linspace(1, 2, 6, dtype=torch.float64)
    F_none = none.F(stored(trained(none), torch.float16), u, T)
    F_class = classes.F(stored(trained(classes), torch.float16), u, T, LABELS)
    expected = F_none + scale[:, None, None, None] * (F_class - F_none)
    found = Guided(teacher, Conditions(LABELS), scale)(u, T)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(EDM2Teacher(str(other)).double()(u, T), F_none, rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match="never trained without a class"):
        EDM2Teacher(str(file))(u, T, torch.full((6,), NULL_LABEL))


@pytest.mark.parametrize("num_classes", [0, NUM_CLASSES])
@torch.no_grad()
def test_the_end_of_a_segment_has_its_published_weight(randn, tmp_path, num_classes):
    """With labels its share is halved with that of the time; without, it has the root of two."""
    source = Source(is_scm=True, num_classes=num_classes, has_segments=True)
    p, u = source.random(), randn(6, *SHAPE)
    labels = LABELS if num_classes else None
    file = write_edm2_scm(tmp_path, num_classes=num_classes, has_segments=True, tensors=p)
    found = EDM2SCMFile.read(str(file))
    assert found.kind == "segments"
    expected = source.F(stored(p, torch.float16), u, T, labels, T / 2)
    F = found.network.double()(u, T, labels, t_end=T / 2)
    torch.testing.assert_close(F, expected, rtol=1e-6, atol=1e-6)
    assert float((F - source.F(stored(p, torch.float16), u, T, labels)).abs().max()) > 0.01


def test_what_a_source_says_of_itself(tmp_path):
    teacher = EDM2Teacher(str(write_edm2(tmp_path)))
    assert teacher.described() == (
        "EDM2 edm2-img8-xxs-0002048-0.075.pkl (sigma_rel 0.075 at 2.048 million images), "
        "0.181 M parameters; t from 0.0050 to 1.5658 rad; licence CC BY-NC-SA 4.0"
    )
    latents = Source(shape=LATENT_SHAPE)
    file = write_edm2(tmp_path, shape=LATENT_SHAPE, tensors=latents.random(), name="l.pkl")
    assert (
        EDM2Teacher(str(file))
        .described()
        .endswith(
            "of latents of stabilityai/sd-vae-ft-mse for images in [0, 1], with mean 5.81, 3.25, "
            "0.12, -2.15 and std 3.336, 3.696, 2.968, 2.624"
        )
    )


@torch.no_grad()
def test_a_ddpmpp_of_edm2_scm_is_a_unet_with_its_options(randn, tmp_path):
    """As on CIFAR-10: no classes, labels of augmentation; its formulas are checked with the map."""
    found = {f"unet.{name}": each for name, each in weights("trigflow", classes=0).items()}
    classes = {"": "TrigFlowDDPMPPPrecond", "unet": "TrigFlowDDPMPPUNet"}
    classes |= {"unet.enc": "ModuleDict", "unet.dec": "ModuleDict"}
    net = tree(found, classes, attributes={"": {"sigma_data": SIGMA_DATA}})
    file = write_persistent(tmp_path / "BEST.pkl", net, "edm2_scm", dtype=torch.float32)
    teacher = EDM2SCMTeacher(str(file)).double()
    u = randn(6, *teacher.data_shape)
    single = {name: each.float().double() for name, each in weights("trigflow", classes=0).items()}
    torch.testing.assert_close(teacher(u, T), output(single, u, T), rtol=1e-6, atol=1e-6)
    options = EDM2SCMFile.read(str(file)).options
    UNet(**options).load_state_dict(teacher.network.state_dict())


def test_latents_of_other_statistics_are_refused(tmp_path):
    """Those of the paper, of images in [-1, 1], are (paper, Appendix G)."""
    p = Source(shape=LATENT_SHAPE).random()
    teacher = EDM2Teacher(str(write_edm2(tmp_path, shape=LATENT_SHAPE, tensors=p)))
    mean, std = teacher.latents.mean, teacher.latents.std
    assert teacher.latents_misfit(mean, [1.02 * each for each in std]) == ""
    for other in ((1.56, -0.695, 0.483, 0.729), (5.81, 3.25, 0.12, -1.6)):
        assert "for images in [0, 1], with mean 5.81" in teacher.latents_misfit(other, std)
    assert teacher.latents_misfit(mean, [1.2 * each for each in std]) != ""


def test_a_student_takes_what_means_the_same(tmp_path):
    """Convolutions and attention; time and modulation are new, and no gain becomes a scale."""
    teacher = EDM2Teacher(str(write_edm2(tmp_path)))
    layers = {"channel_mult": (1, 2), "num_blocks": 1, "attention_pixels": (4,)}
    layers |= {"channels_per_head": HEAD, "num_classes": NUM_CLASSES}
    found = transplant(teacher.own_network(), EDM2UNet(SHAPE, 16, **layers))
    assert "out_gain" in found.tensors
    assert "encoder.2.attention.qkv.weight" in found.tensors
    assert not [name for name in found.tensors if "norm" in name or ".time" in name]
    assert "conditioning.time.weight" in found.left
    other = EDM2SCMTeacher(str(write_edm2_scm(tmp_path))).own_network()
    found = transplant(other, EDM2UNet(SHAPE, 16, shift=True, **layers))
    assert not [name for name in found.tensors if "norm" in name]
    assert "conditioning.time.weight" in found.tensors


def without(name):
    p = dict(trained(Source()))
    del p[name]
    return p


REFUSED = {
    "a student": (
        lambda folder: write_edm2_scm(folder, loss="TrigFlowSCMLoss"),
        EDM2SCMTeacher,
        "a student of edm2_sCM; give a teacher's file, or let a student go on",
    ),
    "EDM2's": (write_edm2, EDM2SCMTeacher, "its class is Precond: an EDM2 network of sigma"),
    "edm2_sCM's": (write_edm2_scm, EDM2Teacher, "its class is TrigFlowPrecond, not Precond"),
    "a weight too few": (
        lambda folder: write_edm2(folder, tensors=without("unet.dec.4x4_in0.emb_gain")),
        EDM2Teacher,
        "it has no weight dec.4x4_in0.emb_gain",
    ),
    "another balance": (
        lambda folder: write_edm2(folder, res_balance=0.5),
        EDM2Teacher,
        "it was built with res_balance 0.5, all published ones with 0.3",
    ),
    "other heads": (
        lambda folder: write_edm2(folder, channels_per_head=24),
        EDM2Teacher,
        "its heads have 24 channels, which must divide",
    ),
}


@pytest.mark.parametrize(("make", "teacher", "message"), REFUSED.values(), ids=REFUSED)
def test_other_files_are_refused(tmp_path, make, teacher, message):
    with pytest.raises(ValueError, match=message):
        teacher(str(make(tmp_path)))
