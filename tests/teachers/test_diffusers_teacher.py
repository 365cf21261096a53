# SPDX-License-Identifier: Apache-2.0
"""Teachers from pipelines of diffusers: its schedulers' own numbers, trajectories and students."""

import importlib.util
import math

import diffusers
import pytest
import torch
from networks import diffusers_models as models
from teachers.sources_diffusers import (
    CLASSES,
    KINDS,
    SHAPE,
    SIGMA_DATA,
    write_diffusers,
)
from teachers.toy import toy_data
from torch.nn.attention import SDPBackend, sdpa_kernel

from scm_lightning.autodiff import TangentComputer
from scm_lightning.core import NULL_LABEL, Bound, Conditions, Guided, TrigFlow
from scm_lightning.networks.classes import num_known_classes
from scm_lightning.networks.condition_names import condition_names
from scm_lightning.sampling import sample_ode
from scm_lightning.teachers import DiffusersStudent, DiffusersTeacher, first_look, transplant
from scm_lightning.teachers.diffusers_check import check_against_scheduler
from scm_lightning.teachers.diffusers_folder import DiffusersFolder
from scm_lightning.teachers.diffusers_schedules import process_of, scheduler_of

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers gives many
PATH = TrigFlow(SIGMA_DATA)
NUM = 4
NEEDS_ACCELERATE = {"wan"} if importlib.util.find_spec("accelerate") is None else set()


@pytest.fixture(scope="module")
def folders(once):
    """A pipeline of every prediction; the one of v with classes is trained."""

    def write(folder):
        for kind in ("epsilon", "sample", "v_prediction", "flow", "dit"):
            write_diffusers(folder / kind, kind, steps=0)
        write_diffusers(folder / "classes", "classes", steps=60)

    return once("diffusers", write)


def opened(folder, **options):
    teacher = DiffusersTeacher(str(folder), **options)
    teacher.on_path(PATH)
    return teacher


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NEEDS_ACCELERATE])
def test_F_is_the_schedulers_own_estimate_of_x0(tmp_path, kind, capsys):
    """In float32 on loading, and in float64 to 1e-8, at any sigma_data and scale of the data."""
    folder = str(write_diffusers(tmp_path, kind, steps=0))
    teacher = DiffusersTeacher(folder, data_scale=1.4)
    assert "F agrees with the source's own denoiser to" in capsys.readouterr().out
    teacher.on_path(PATH)
    scheduler = scheduler_of(DiffusersFolder(folder).scheduler)
    found = check_against_scheduler(teacher.double(), teacher.network.network, scheduler)
    assert found.error < 1e-10
    assert teacher.licence == "cc-by-nc-4.0"


@pytest.mark.skipif(not NEEDS_ACCELERATE, reason="accelerate is installed")
def test_wan_says_that_it_needs_accelerate(tmp_path):
    with pytest.raises(ValueError, match=r"Wan.*pip install accelerate"):
        DiffusersTeacher(str(write_diffusers(tmp_path, "wan", steps=0)))


def test_what_is_trained_denoises_and_a_wrong_prediction_scale_or_label_does_not(folders):
    def looked(offset=0, **options):
        teacher = opened(folders / "classes", **options)
        x0, labels = toy_data(40, SHAPE, CLASSES, SIGMA_DATA, seed=999)
        given = Conditions((labels + offset) % CLASSES)
        return first_look(teacher, x0, given, PATH, CLASSES).misfit()

    assert looked() == ""
    for prediction in ("epsilon", "sample"):  # v and a flow's are too much alike
        assert "linear filter" in looked(prediction=prediction)
    assert "linear filter" in looked(data_scale=1 / 0.18215)
    assert "label moved by -1" in looked(offset=1)


def raw(folder, kind):
    """The model itself, as diffusers loads it, and the call of its pipeline."""
    its = KINDS[kind]
    model = type(its.build()).from_pretrained(folder / its.part, use_safetensors=True).eval()
    labels, named = torch.tensor([2, 0, 1, 1]), its.given(NUM)

    def call(x, time):
        if kind == "flow":
            return model(x, named["text"].to(x), time.expand(NUM), return_dict=False)[0]
        if kind == "v_prediction":
            return model(x, time, named["text"].to(x), return_dict=False)[0]
        found = model(x, time.expand(NUM), class_labels=labels, return_dict=False)[0]
        return found[:, : SHAPE[0]]

    return model, call, labels, named


@pytest.mark.parametrize("kind", ["epsilon", "sample", "dit"])
@torch.no_grad()
def test_a_ddim_trajectory_is_the_schedulers(folders, kind):
    """The same noise, ten steps to t = 0 in float64; theirs starts at step 900 of 1000."""
    scheduler = scheduler_of(DiffusersFolder(str(folders / kind)).scheduler)
    options = {"clip_sample": False, "prediction_type": scheduler.config.prediction_type}
    ddim = diffusers.DDIMScheduler.from_config(scheduler.config, **options)
    ddim.alphas_cumprod = scheduler.alphas_cumprod.double()
    ddim.set_timesteps(10)
    model, call, labels, _ = raw(folders / kind, kind)
    model.double()
    x = torch.randn(NUM, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    noisy = x
    for n in ddim.timesteps:
        noisy = ddim.step(call(noisy, n), n, noisy).prev_sample
    teacher = opened(folders / kind).double()
    process = teacher.network.process
    times = [*process.t_from_time(ddim.timesteps.double()).tolist(), 0.0]
    start = process.x_to_trigflow(x, ddim.timesteps[:1].double().expand(NUM))
    given = Guided(teacher, Conditions(labels))
    ours = sample_ode(given, start, times, path=PATH, solver="ddim")
    assert float((ours - noisy).abs().max()) < 1e-9 * float(noisy.abs().max())


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("v_prediction", "EulerDiscreteScheduler"),
        ("v_prediction", "DPMSolverMultistepScheduler"),
        ("flow", "FlowMatchEulerDiscreteScheduler"),
    ],
)
@torch.no_grad()
def test_trajectories_of_other_schedulers_are_ours(folders, kind, name):
    """Theirs in float32, `shift` and all: it says which times are visited, and nothing else."""
    config = scheduler_of(DiffusersFolder(str(folders / kind)).scheduler).config
    scheduler = getattr(diffusers, name).from_config(config)
    scheduler.set_timesteps(9)
    _, call, _, named = raw(folders / kind, kind)
    noise = torch.randn(NUM, *SHAPE, generator=torch.Generator().manual_seed(4))
    theirs = start = noise * (1.0 if kind == "flow" else scheduler.init_noise_sigma)
    for time in scheduler.timesteps:
        scaled = theirs if kind == "flow" else scheduler.scale_model_input(theirs, time)
        theirs = scheduler.step(call(scaled, time), time, theirs).prev_sample
    teacher = opened(folders / kind)
    sigmas = scheduler.sigmas.double()
    alpha = 1 - sigmas if kind == "flow" else 1.0 + 0 * sigmas  # EDM's x0 + sigma eps
    times = torch.atan2(sigmas, SIGMA_DATA * alpha)
    scale = torch.hypot(SIGMA_DATA * alpha[0], sigmas[0])
    if name.startswith("DPM"):  # theirs has alpha^2 + sigma^2 = 1
        scale = scale / (1 + sigmas[0] ** 2).sqrt()
    x = (SIGMA_DATA / scale * start).float()
    solver = "dpm++" if name.startswith("DPM") else "ddim"
    given = Guided(teacher, Conditions(None, named))
    ours = sample_ode(given, x, times.tolist(), path=PATH, solver=solver)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4 * float(theirs.abs().max()))


FLOWS = {
    "flow": lambda m, x, s, given: m(x, given["text"], 1000 * s)[0],
    "sd3": lambda m, x, s, given: m(x, given["text"], given["pooled"], 1000 * s)[0],
    "aura_flow": lambda m, x, s, given: m(x, given["text"], s)[0],
    "lumina2": lambda m, x, s, given: -m(x, 1 - s, given["text"], torch.ones(NUM, 5).bool())[0],
}


@pytest.mark.parametrize("kind", FLOWS)
@torch.no_grad()
def test_times_and_signs_of_flows_are_those_of_their_pipelines(tmp_path, kind):
    """Written out: the time that the model is told, and the sign its pipeline gives its output."""
    folder = write_diffusers(tmp_path, kind, steps=0)
    its, given = KINDS[kind], KINDS[kind].given(NUM)
    model = type(its.build()).from_pretrained(folder / its.part).eval()
    s = torch.tensor([0.1, 0.4, 0.8, 1.0])
    x = torch.randn(NUM, *SHAPE, generator=torch.Generator().manual_seed(4))
    expected = x - s[:, None, None, None] * FLOWS[kind](model, x, s, given)
    teacher = opened(folder)
    t = torch.atan2(s, SIGMA_DATA * (1 - s))
    x_t = teacher.network.process.x_to_trigflow(x, s)
    F = teacher(x_t / SIGMA_DATA, t, None, **given)
    torch.testing.assert_close(PATH.consistency(F, x_t, t), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_classes_none_and_guidance(folders):
    """DiT has a row for none; guidance mixes the two as its pipeline does, by the noise."""
    teacher = opened(folders / "dit").double()
    model, _, labels, _ = raw(folders / "dit", "dit")
    model.double()
    assert num_known_classes(teacher) == CLASSES
    n = torch.full((NUM,), 400).double()
    process = teacher.network.process
    t = process.t_from_time(n)
    x = torch.randn(NUM, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    branches = [model(x, n, class_labels=c)[0][:, :2] for c in (labels, torch.full((NUM,), 3))]
    eps = branches[1] + 2.5 * (branches[0] - branches[1])
    expected = process.F_from_prediction(eps, x, t)
    u = process.x_to_trigflow(x, n) / SIGMA_DATA
    given = Conditions(labels, {}, {})
    found = Guided(teacher, given, torch.full((NUM,), 2.5).double())(u, t)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    none = teacher(u, t, torch.full((NUM,), NULL_LABEL))
    torch.testing.assert_close(none, process.F_from_prediction(branches[1], x, t))


@torch.no_grad()
def test_a_unet_may_have_a_class_for_none(folders):
    teacher = opened(folders / "epsilon", null_class=CLASSES - 1)
    u, t = torch.randn(NUM, *SHAPE), torch.full((NUM,), 0.7)
    last = opened(folders / "epsilon")(u, t, torch.full((NUM,), CLASSES - 1))
    torch.testing.assert_close(teacher(u, t, torch.full((NUM,), NULL_LABEL)), last)
    assert teacher.num_classes == CLASSES - 1
    with pytest.raises(ValueError, match="null_class must be the last of the 3 classes"):
        opened(folders / "epsilon", null_class=1)


@pytest.mark.parametrize("kind", ["dit", "v_prediction", "flow"])
def test_a_student_of_its_class_starts_as_the_teacher(folders, kind):
    """All weights are copied, F is the same, and its derivative is that of forward mode."""
    teacher = opened(folders / kind)
    student = DiffusersStudent(str(folders / kind), SIGMA_DATA)
    for parameter in student.parameters():
        parameter.data.add_(1)
    found = transplant(teacher.own_network(), student)
    assert found.share == 1
    assert not found.left
    student.load_state_dict(found.tensors)
    teacher.double()
    student.double().eval()
    assert condition_names(student).needed == condition_names(teacher).needed
    assert condition_names(student).optional == condition_names(teacher).optional
    named = {name: x.double() for name, x in KINDS[kind].given(NUM).items()}
    labels = torch.tensor([2, 0, 1, 1]) if kind == "dit" else None
    generator = torch.Generator().manual_seed(4)
    u, dx = (torch.randn(NUM, *SHAPE, generator=generator).double() for _ in range(2))
    t = torch.tensor([0.1, 0.5, 1.0, 1.45]).double()
    torch.testing.assert_close(student(u, t, labels, **named), teacher(u, t, labels, **named))
    at = Bound(student, labels, None, None, named), SIGMA_DATA * u, t, dx
    F, J = TangentComputer("dual", check=False)(*at, sigma_data=SIGMA_DATA)
    with sdpa_kernel(SDPBackend.MATH):
        F_func, J_func = TangentComputer("func", check=False)(*at, sigma_data=SIGMA_DATA)
    torch.testing.assert_close(F, F_func, rtol=0, atol=1e-12)
    torch.testing.assert_close(J, J_func, rtol=0, atol=1e-6 * float(J_func.abs().max()))
    assert any(p.requires_grad for p in student.parameters())


def test_a_plain_network_of_the_class_takes_no_weight(folders):
    """Its output is F, not noise: a start from such weights would point elsewhere."""
    from scm_lightning.networks import DiffusersNetwork

    found = transplant(opened(folders / "epsilon").own_network(), DiffusersNetwork(models.unet()))
    assert found.share == 0


def test_times_are_clamped_and_amplification_is_said(folders):
    teacher = opened(folders / "epsilon")
    assert "divided by cos t: up to 225 times" in teacher.described()
    low, high = teacher.t_range
    u = torch.randn(2, *SHAPE)
    for beyond, end in [(0.0, low), (math.pi / 2, high)]:
        clamped = teacher(u, torch.full((2,), beyond))
        torch.testing.assert_close(clamped, teacher(u, torch.full((2,), end)))
    assert "its error is divided by sin t" in opened(folders / "sample").amplification()
    assert opened(folders / "flow").amplification() == ""
    assert opened(folders / "flow").t_range == (0.0, math.pi / 2)


def test_latents_of_another_scale_are_found(folders):
    """What the pipeline's autoencoder says, against the statistics that the data are scaled by."""
    teacher = opened(folders / "v_prediction", data_scale=0.7)
    std = SIGMA_DATA / 0.7 / 0.13025
    assert teacher.latents_misfit([0.0609, 0.0609], [std, std]) == ""
    found = teacher.latents_misfit([0.0609, 0.0609], [std, 1 / 0.18215])
    assert "takes latents with mean 0.0609 and std 7.6775" in found
    assert "those of channel 1 have 0.0609 and 5.49" in found
    assert "have 5.81 and" in teacher.latents_misfit([5.81, 0.0609], [std, std])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DDPMScheduler", {}),
        ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
        (
            "PNDMScheduler",
            {"beta_start": 8.5e-4, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        ),
        ("UniPCMultistepScheduler", {"trained_betas": [0.01 + 0.002 * n for n in range(50)]}),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}),
        ("CogVideoXDDIMScheduler", {"snr_shift_scale": 2.0}),
    ],
)
def test_tables_are_those_of_the_papers(name, settings):
    """Written out in float64; diffusers computes them in float32."""
    scheduler = getattr(diffusers, name)(**settings)
    found = torch.tensor(process_of(scheduler, "v_prediction", PATH).alphas_bar).double()
    n = torch.arange(1001).double() / 1000
    if "trained_betas" in settings:
        betas = torch.tensor(settings["trained_betas"]).double()
    elif settings.get("beta_schedule") == "squaredcos_cap_v2":
        bar = ((n + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    elif "rescale_betas_zero_snr" in settings:
        betas = torch.linspace(1e-4, 0.02, 1000).double()
    else:
        betas = torch.linspace(8.5e-4**0.5, 0.012**0.5, 1000).double() ** 2
        betas = torch.linspace(1e-4, 0.02, 1000).double() if name == "DDPMScheduler" else betas
    kept = (1 - betas).cumprod(0)
    if "rescale_betas_zero_snr" in settings:
        root = kept.sqrt()
        kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    if "snr_shift_scale" in settings:
        kept = kept / (2.0 + (1 - 2.0) * kept)
    torch.testing.assert_close(found, kept, rtol=2e-4, atol=1e-6)
