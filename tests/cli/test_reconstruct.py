# SPDX-License-Identifier: Apache-2.0
"""`scm reconstruct`, on a run of the shipped teacher's configuration, narrowed."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scm_lightning import ConsistencyModule, TrigFlow
from scm_lightning.cli import main
from scm_lightning.core import gamma_from_sigma_rel, post_hoc_coefficients
from scm_lightning.networks import MLP
from scm_lightning.objectives import TeacherVelocity
from scm_lightning.storage import Export, SavedRun
from scm_lightning.storage.snapshot import ends_of_profiles, read_snapshots
from scm_lightning.teachers import load_teacher

CONFIG = Path(__file__).parents[2] / "configs" / "digits_teacher.yaml"
STEPS, WIDTHS = 40, (0.05, 0.10, 0.075)


def network():
    return MLP((1, 8, 8), 16, 1, num_classes=10)


def fit(folder, *options):
    """Forty steps with three averages, and snapshots of them every five."""
    profile = "scm_lightning.modules.PowerFunction"
    extra = {
        "model": {
            "init_args": {
                "ema": [{"class_path": profile, "init_args": {"sigma_rel": w}} for w in WIDTHS],
            }
        },
        "trainer": {
            "callbacks": [
                {
                    "class_path": "scm_lightning.callbacks.EMASnapshots",
                    "init_args": {"every_n_steps": 5, "dtype": "float32"},
                }
            ],
            "max_steps": STEPS,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder / "run"),
        },
    }
    (folder / "extra.yaml").write_text(yaml.safe_dump(extra))
    sizes = {"model_channels": 16, "num_blocks": 1}
    prefix = "--model.init_args.network.init_args."
    main(
        [
            "fit",
            f"--config={CONFIG}",
            f"--config={folder / 'extra.yaml'}",
            *(f"{prefix}{name}={value}" for name, value in sizes.items()),
            f"--data.init_args.root={folder / 'shards'}",
            "--model.init_args.lr_schedule.init_args.ramp_steps=4",
            *options,
        ]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reconstruct")
    fit(folder)
    return folder / "run"


@pytest.fixture
def two(run, tmp_path):
    """The run with the snapshots of two widths only: the third was tracked to compare with."""
    shutil.copytree(run, tmp_path / "two")
    for file in (tmp_path / "two" / "ema").glob("*-0.075.safetensors"):
        file.unlink()
    return tmp_path / "two"


def reconstruct(folder, out, *options, sigma_rel=0.075):
    main(
        [
            "reconstruct",
            f"--run={folder}",
            f"--sigma_rel={sigma_rel}",
            f"--out={out}",
            *(str(each) for each in options),
        ]
    )


def averaged(file, prefix="ema.network."):
    state = SavedRun.read(file).content["state_dict"]
    return torch.cat(
        [value.double().flatten() for name, value in state.items() if name.startswith(prefix)]
    )


def test_the_reconstruction_is_close_to_the_average_that_was_tracked(two, tmp_path, capsys):
    """Eight snapshots of each width: an eighth of the distance to the nearest of the two."""
    out = tmp_path / "new" / "out.ckpt"
    reconstruct(two, out)
    assert "residual" in capsys.readouterr().out
    last = two / "checkpoints" / "last.ckpt"
    direct = averaged(last, "further_emas.1.network.")
    nearest = min(
        float((averaged(last, prefix) - direct).norm())
        for prefix in ("ema.network.", "further_emas.0.network.")
    )
    assert float((averaged(out) - direct).norm()) < nearest / 8
    found = SavedRun.read(out).content["scm_lightning"]
    assert found["reconstructed"]["sigma_rel"] == 0.075
    assert found["reconstructed"]["step"] == STEPS
    assert found["reconstructed"]["residual"] == pytest.approx(0.0125, abs=1e-3)
    assert found["module"] == "diffusion"


def test_the_output_teaches_a_student(two, tmp_path):
    """Its weights are the sum of the snapshots, by the coefficients."""
    out = tmp_path / "out.ckpt"
    reconstruct(two, out)
    teacher = load_teacher(out, network(), TrigFlow(0.5))
    snapshots = read_snapshots(two / "ema")
    gammas = [gamma_from_sigma_rel(each.sigma_rel) for each in snapshots]
    ends = ends_of_profiles(snapshots)
    c = post_hoc_coefficients(ends, gammas, ends[-1], gamma_from_sigma_rel(0.075))
    expected = sum(
        each * load_file(snapshot.file)["input.weight"].double()
        for each, snapshot in zip(c, snapshots, strict=True)
    )
    torch.testing.assert_close(teacher.state_dict()["input.weight"], expected.float())
    student = ConsistencyModule(network(), TeacherVelocity(), str(out), path=TrigFlow(0.5))
    torch.testing.assert_close(student.student.state_dict()["input.weight"], expected.float())


def test_a_snapshot_is_reproduced(two, tmp_path):
    """At an earlier step and a width that was tracked: the file itself, to rounding."""
    out = tmp_path / "out.ckpt"
    reconstruct(two, out, "--step", 25, sigma_rel=0.1)
    state = SavedRun.read(out).content["state_dict"]
    for name, weight in load_file(two / "ema" / "0000025-0.1.safetensors").items():
        torch.testing.assert_close(state[f"ema.network.{name}"], weight, rtol=0, atol=1e-7)


def rewritten(file, **changes):
    """A snapshot with other metadata; None leaves an entry out."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() | changes
    save_file(load_file(file), file, {key: each for key, each in metadata.items() if each})


@pytest.mark.parametrize("last_of_old_version", [STEPS, 20])
def test_snapshots_of_0_3_0_are_read(last_of_old_version, two, tmp_path):
    """They tell steps alone: all of them, or those before the run was continued."""
    reconstruct(two, tmp_path / "images.ckpt")
    for snapshot in read_snapshots(two / "ema"):
        assert snapshot.images == 128 * snapshot.step
        if snapshot.step <= last_of_old_version:
            rewritten(snapshot.file, images=None)
    reconstruct(two, tmp_path / "steps.ckpt")
    found, expected = (averaged(tmp_path / f"{name}.ckpt") for name in ("steps", "images"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_steps_do_not_tell_where_a_profile_ends_if_batches_changed(two, tmp_path, capsys):
    """From step 30 on the batches are twice as large: with all images told, well, and else not."""
    for snapshot in read_snapshots(two / "ema"):
        images = 128 * (snapshot.step + max(0, snapshot.step - 30))
        rewritten(snapshot.file, images=str(images))
    reconstruct(two, tmp_path / "out.ckpt")
    rewritten(two / "ema" / "0000020-0.1.safetensors", images=None)
    line = refused(capsys, lambda: reconstruct(two, tmp_path / "other.ckpt"))
    assert "must tell the images that they have taken in where the batch size changed" in line


def test_the_output_is_tested_but_not_trained_on(run, tmp_path, capsys):
    out, config = tmp_path / "out.ckpt", f"--config={run / 'config.yaml'}"
    reconstruct(run, out, sigma_rel=0.06)
    elsewhere = [f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false"]
    samples = "--data.init_args.num_test_samples=400"
    main(["test", config, f"--ckpt_path={out}", samples, *elsewhere])
    assert str(out) in (tmp_path / "metrics.json").read_text()
    line = refused(capsys, lambda: main(["fit", config, f"--ckpt_path={out}", *elsewhere]))
    assert "a run cannot continue from" in line


def refused(capsys, call):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        call()
    lines = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    assert caught.value.code == 2
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("sigma_rel", "options", "message"),
    [
        (0.3, [], "sigma_rel must be in (0, 0.2887], got 0.3"),
        ("wide", [], "sigma_rel"),
        (0.075, ["--step", 41], "with snapshots, 5 to 40, got 41; the nearest is 40"),
        (0.075, ["--step", 33], "with snapshots, 5 to 40, got 33; the nearest is 35"),
        (0.01, [], "the snapshots must span the profile, a residual of"),
        (0.01, [], "the widths are 0.05 and 0.1: take a width nearer to these"),
        (0.075, ["--checkpoint", "nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        (0.075, ["--nonsense", 1], "nonsense"),
    ],
)
def test_what_cannot_be_reconstructed_is_refused(
    sigma_rel, options, message, two, tmp_path, capsys
):
    out = tmp_path / "out.ckpt"
    call = lambda: reconstruct(two, out, *options, sigma_rel=sigma_rel)  # noqa: E731
    assert message in refused(capsys, call)
    assert not out.exists()


def test_missing_and_foreign_files_are_refused(two, tmp_path, capsys):
    out, ema, last = tmp_path / "out.ckpt", two / "ema", two / "checkpoints" / "last.ckpt"

    def line(folder=two, out=out):
        return refused(capsys, lambda: reconstruct(folder, out))

    assert "there is no run nowhere" in line("nowhere")
    assert f"there are no snapshots of averages in {tmp_path}" in line(tmp_path)
    assert "out must be another file than the checkpoint" in line(out=last)
    for own in ("0000010.ckpt", "0000090.ckpt"):  # a run would take it for one of its own
        assert "another name than those that a run continues from" in line(out=last.with_name(own))
    weights = load_file(ema / "0000020-0.05.safetensors")
    facts = {"step": "20", "sigma_rel": "0.05", "buffers": "[]", "module": "diffusion"}
    foreign = ema / "foreign.safetensors"
    save_file(weights, foreign, facts | {"sigma_data": "0.7"})
    assert "is a diffusion run with sigma_data 0.5" in line()
    del weights["input.weight"]
    save_file(weights, foreign, facts | {"sigma_data": "0.5"})
    assert "snapshots must be of one network" in line()
    for nothing in ({"step": "0"}, {"images": "0"}, {"images": "many"}):
        save_file(weights, foreign, facts | {"sigma_data": "0.5"} | nothing)
        assert "foreign.safetensors is not a snapshot of an average" in line()
    save_file(weights, foreign)
    assert "foreign.safetensors is not a snapshot of an average" in line()
    foreign.write_text("hello")
    assert "foreign.safetensors is not a snapshot of an average" in line()
    foreign.unlink()
    content = torch.load(last, weights_only=True)
    content["state_dict"]["ema.network.further"] = torch.zeros(2)
    torch.save(content, last)
    assert "snapshots and checkpoint must be of one network" in line()


def test_a_poor_reconstruction_is_warned_of(two, tmp_path, capsys):
    reconstruct(two, tmp_path / "out.ckpt", sigma_rel=0.03)
    assert "warning: a residual above 3%" in capsys.readouterr().err


@pytest.mark.parametrize("profile", ["[{}]", "{}"])
def test_a_wrong_option_of_an_average_is_named(profile, tmp_path, capsys):
    """Of one as of several, without the parser's account of what it tried."""
    ema = profile.format('{"class_path": "PowerFunction", "init_args": {"sigma": 0.1}}')
    args = ["fit", f"--config={CONFIG}", f"--model.init_args.ema={ema}"]
    line = refused(capsys, lambda: main(args))
    assert line.startswith("scm: error: model.init_args.ema.init_args.sigma is no option; there")


def test_a_reconstruction_can_be_exported(two, tmp_path):
    """Its weights, width and step, not those of the checkpoint that it was put in."""
    out, exported = tmp_path / "out.ckpt", tmp_path / "out.safetensors"
    reconstruct(two, out, "--step=25")
    main(["export", f"--checkpoint={out}", f"--out={exported}"])
    found = Export.read(exported)
    assert (found.profile, found.step) == ("0.075", 25)
    for name, weight in found.tensors.items():
        assert torch.equal(weight, SavedRun.read(out).content["state_dict"][f"ema.network.{name}"])


def test_help_lists_the_options(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["reconstruct", "--help"])
    assert caught.value.code == 0
    assert "relative width of the power-function profile" in capsys.readouterr().out
