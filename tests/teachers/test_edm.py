# SPDX-License-Identifier: Apache-2.0
"""EDM's networks as teachers: F is that of the published denoisers, whatever is wrong is found."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from teachers.edm_reference import F_of, output
from teachers.sources_edm import (
    CLASSES,
    KINDS,
    SHAPE,
    fixed,
    trained,
    weights,
    write_edm,
)
from teachers.toy import toy_data
from torch import Tensor

from scm_lightning.core import Conditions, TrigFlow
from scm_lightning.core.guidance import Guided
from scm_lightning.networks import UNet
from scm_lightning.teachers import EDMTeacher, FirstLook, first_look, transplant

SIGMA_DATA = 0.7
RECORDED = Path(__file__).parent / "edm_outputs.safetensors"
PRECONDS = [("ddpmpp", "VPPrecond"), ("ncsnpp", "VEPrecond"), ("adm", "iDDPMPrecond")]


def opened(folder: Path, kind: str, precond: str = "EDMPrecond", **options: object) -> EDMTeacher:
    """Teacher of a file with the formula's weights, float64, of data of the tests' sigma_data."""
    out = 6 if precond == "iDDPMPrecond" else 3
    given = {"found": weights(kind, out=out), "dtype": torch.float64, "sigma_data": SIGMA_DATA}
    teacher = EDMTeacher(str(write_edm(folder, kind, precond, **{**given, **options})))
    teacher.on_path(TrigFlow(SIGMA_DATA))
    return teacher.eval()


def grid(teacher: EDMTeacher, num: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy data, times with both ends of the range, and labels."""
    t = torch.linspace(*teacher.t_range, num, dtype=torch.float64).clamp(*teacher.t_range)
    return fixed("u", (num, *SHAPE)), t, torch.arange(num) % CLASSES


@pytest.mark.parametrize("kind", KINDS)
def test_networks_equal_the_outputs_recorded_of_nvidias_own_code(kind: str, tmp_path: Path) -> None:
    """Other people's code, from the pickle on; `metadata` of the file says how it was made."""
    recorded = load_file(RECORDED)
    network = opened(tmp_path, kind).network
    x, c_noise, labels = fixed("x", (2, *SHAPE)), torch.tensor([-1.55, 1.09]), torch.tensor([2, 0])
    found = network(x, c_noise.double(), labels)
    plain = recorded.get(f"{kind}_plain", recorded[kind])
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tests_own_formulas_equal_the_recorded_outputs(kind: str) -> None:
    recorded, one_hot = load_file(RECORDED), torch.eye(CLASSES).double()[[2, 0]]
    x, c_noise = fixed("x", (2, *SHAPE)), torch.tensor([-1.55, 1.09]).double()
    for name, augment in ((kind, fixed("augment", (2, 9))), (f"{kind}_plain", None)):
        if kind == "adm":
            name, augment = kind, None
        found = output(weights(kind), x, c_noise, one_hot, augment)
        torch.testing.assert_close(found, recorded[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "precond"), [(kind, "EDMPrecond") for kind in KINDS] + PRECONDS)
def test_F_is_that_of_the_denoiser(kind: str, precond: str, tmp_path: Path) -> None:
    teacher = opened(tmp_path, kind, precond)
    found = weights(kind, out=6 if precond == "iDDPMPrecond" else 3)
    u, t, labels = grid(teacher)
    expected = F_of(found, u, t, labels, precond, SIGMA_DATA)
    error = 1e-8 * float(expected.abs().max())
    torch.testing.assert_close(teacher(u, t, labels), expected, rtol=0, atol=error)
    if precond == "EDMPrecond":
        assert teacher.t_range == pytest.approx(
            (math.atan(0.002 / SIGMA_DATA), math.atan(80 / SIGMA_DATA))
        )
    outside = teacher(u[:2], torch.tensor([0.0, math.pi / 2]).double(), labels[:2])
    ends = torch.tensor(teacher.t_range, dtype=torch.float64)
    torch.testing.assert_close(outside, teacher(u[:2], ends, labels[:2]))


@pytest.mark.parametrize("kind", KINDS)
def test_half_weights_are_computed_in_float32(kind: str, tmp_path: Path) -> None:
    found = {name: each.half().double() for name, each in weights(kind).items()}
    teacher = opened(tmp_path, kind, dtype=torch.float16)
    assert {each.dtype for each in teacher.state_dict().values()} == {torch.float32}
    u, t, labels = grid(teacher)
    expected = F_of(found, u, t, labels, sigma_data=SIGMA_DATA)
    F = teacher(u.float(), t.float(), labels).double()
    torch.testing.assert_close(F, expected, rtol=1e-4, atol=1e-4)


def test_a_ddpmpp_is_a_network_of_ours_at_t(tmp_path: Path) -> None:
    """With a class, with none (zeros in its place), and with augmentation labels."""
    teacher = opened(tmp_path, "ddpmpp")
    own = teacher.own_network()
    assert isinstance(own, UNet)
    u, t, labels = grid(teacher)
    torch.testing.assert_close(own(u, t, labels), teacher(u, t, labels))
    labels[0] = -1
    expected = F_of(weights("ddpmpp"), u, t, labels, sigma_data=SIGMA_DATA)
    torch.testing.assert_close(own(u, t, labels), expected, rtol=1e-8, atol=1e-8)
    augment, c_noise = fixed("augment", (5, 9)), (SIGMA_DATA * t.tan()).log() / 4
    one_hot = torch.eye(CLASSES).double()[labels] * (labels >= 0)[:, None]
    expected = -output(weights("ddpmpp"), u, c_noise, one_hot, augment)
    torch.testing.assert_close(own(u, t, labels, augment=augment), expected, rtol=1e-8, atol=1e-8)
    again = transplant(own, teacher.own_network() or own)
    assert not again.left
    assert again.share == 1
    for kind, precond in (("ncsnpp", "EDMPrecond"), ("adm", "EDMPrecond"), PRECONDS[0]):
        assert opened(tmp_path, kind, precond).own_network() is None


def test_a_double_norm_takes_all_but_the_additive_norms(tmp_path: Path) -> None:
    own = opened(tmp_path, "ddpmpp").own_network()
    assert own is not None
    student = UNet(SHAPE, 16, (1, 2), 1, (8,), num_classes=CLASSES)
    found = transplant(own, student)
    assert all(
        name.split(".")[0] in ("down", "middle", "up", "conditioning") for name in found.left
    )
    assert {reason for name, reason in found.left.items() if "norm2" in name} != set()
    assert not [name for name in found.tensors if "norm2" in name or "time" in name]
    assert "output.weight" in found.tensors


def look(teacher: EDMTeacher) -> FirstLook:
    teacher.on_path(TrigFlow(0.5))
    x0, labels = toy_data(40, SHAPE, CLASSES, 0.5, seed=999)
    given = Conditions(labels if teacher.num_classes else None)
    return first_look(teacher, x0, given, teacher.path, teacher.num_classes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_file_denoises(kind: str, tmp_path: Path) -> None:
    teacher = EDMTeacher(str(write_edm(tmp_path, kind)))
    assert look(teacher).misfit() == ""
    assert "licence CC BY-NC-SA 4.0" in teacher.described()
    assert f"{teacher.t_range[1]:.6f}" == "1.564546"


def swapped(found: dict[str, Tensor]) -> None:
    found["map_layer0.weight"] = found["map_layer0.weight"].roll(8, 1)


def blocked(found: dict[str, Tensor]) -> None:
    for name in found:
        if ".qkv." in name:
            each = found[name]
            found[name] = each.reshape(-1, 3, *each.shape[1:]).transpose(0, 1).reshape(each.shape)


def flipped(found: dict[str, Tensor]) -> None:
    for name in found:
        if "aux_conv" in name:
            found[name] = -found[name]


def scaled(found: dict[str, Tensor]) -> None:
    found["map_label.weight"] = found["map_label.weight"] / math.sqrt(CLASSES)


@pytest.mark.parametrize("danger", [swapped, blocked, flipped, scaled])
def test_what_is_easily_mistaken_changes_F(danger, tmp_path: Path) -> None:
    """A file with the mistake in it: what a reader that makes it would compute."""
    found = dict(weights("ddpmpp"))
    danger(found)
    right, wrong = opened(tmp_path, "ddpmpp"), opened(tmp_path, "ddpmpp", found=found)
    u, t, labels = grid(right)
    difference = (right(u, t, labels) - wrong(u, t, labels)).detach()
    assert float(difference.abs().max()) > 1e-3


def test_a_wrong_sign_is_found_on_the_data(tmp_path: Path) -> None:
    found = dict(trained("ddpmpp", "EDMPrecond", CLASSES))
    flipped(found)
    teacher = EDMTeacher(str(write_edm(tmp_path, found=found)))
    assert "worse than a linear filter" in look(teacher).misfit()


def test_guidance_leads_away_from_a_network_without_classes(tmp_path: Path) -> None:
    files = [str(write_edm(tmp_path, "ddpmpp")), str(write_edm(tmp_path, "ddpmpp", classes=0))]
    teacher, none = EDMTeacher(*files), EDMTeacher(files[1])
    assert look(none).misfit() == ""
    u, t, labels = (each[:4] for each in grid(teacher))
    F = Guided(teacher, Conditions(labels), torch.full((4,), 1.5))(u.float(), t.float())
    F_none = none(u.float(), t.float())
    expected = F_none + 1.5 * (teacher(u.float(), t.float(), labels) - F_none)
    torch.testing.assert_close(F, expected)
    with pytest.raises(ValueError, match="never trained without a class"):
        Guided(EDMTeacher(files[0]), Conditions(labels), torch.ones(4))(u.float(), t.float())


def test_safetensors_of_the_same_names_are_the_same_network(tmp_path: Path) -> None:
    found = {f"model.{name}": each.float() for name, each in weights("adm").items()}
    save_file(found, tmp_path / "adm.safetensors")
    alike = EDMTeacher(str(tmp_path / "adm.safetensors"))
    pickled = EDMTeacher(str(write_edm(tmp_path, "adm", found=weights("adm"))))
    u, t, labels = grid(alike)
    F = [each(u.float(), t.float(), labels) for each in (alike, pickled)]
    torch.testing.assert_close(*F, rtol=0, atol=0)


def test_files_of_others_are_refused_in_one_line(tmp_path: Path) -> None:
    found = weights("ddpmpp")
    some = next(name for name in found if "block0.conv1" in name)
    filtered = next(name for name in found if name.endswith("filter"))
    cases = [
        ({"found": {k: v for k, v in found.items() if k != some}}, f"it has no weight {some}"),
        ({"found": {**found, "enc.new.weight": torch.ones(2)}}, "a weight enc.new.weight too many"),
        ({"found": {**found, some: found[some][:3]}}, f"its weight {some} has shape .3, 16, 3, 3."),
        ({"found": {**found, filtered: found[filtered] * 0.9}}, "not the mean of four pixels"),
        ({"found": {"enc.weight": torch.ones(2, 2)}}, "it is no U-Net of EDM"),
        ({"found": weights("ddpmpp", out=6)}, "has 6 channels behind 3 before it"),
        ({"found": found, "precond": "Precond"}, "its class is Precond, known are EDMPrecond"),
        ({"found": {**found, some: found[some] * math.nan}}, f"its model.{some} is not finite"),
    ]
    for options, match in cases:
        with pytest.raises(ValueError, match=match) as caught:
            EDMTeacher(str(write_edm(tmp_path, **options)))
        assert "\n" not in str(caught.value)
    for kind in ("ncsnpp", "adm"):
        found = dict(weights(kind))
        del found["map_layer1.bias"]
        with pytest.raises(ValueError, match=r"it has no weight map_layer1.bias; give one of the"):
            EDMTeacher(str(write_edm(tmp_path, kind, found=found)))
    with pytest.raises(ValueError, match="beside one with classes"):
        EDMTeacher(*[str(write_edm(tmp_path, "ddpmpp", found=weights("ddpmpp")))] * 2)
