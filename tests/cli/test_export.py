# SPDX-License-Identifier: Apache-2.0
"""`scm export`: the network that comes out is the network of the run, its samples are the run's."""

import pytest
import torch
from gaussian import PATH
from safetensors.torch import load_file
from tiny import loader, mlp, trainer, wake

from scm_lightning import ConsistencyModule, DiffusionModule, TrigFlow
from scm_lightning.cli import main
from scm_lightning.data import SampleRequest
from scm_lightning.modules import HalfLife, PowerFunction
from scm_lightning.objectives import TeacherVelocity
from scm_lightning.storage import Export, SavedRun
from scm_lightning.teachers import load_teacher

AVERAGES = [HalfLife(20.0), PowerFunction(0.05), PowerFunction(0.1)]
WHERE = {
    "2e-05M": "ema.network.",
    "0.05": "further_emas.0.network.",
    "0.1": "further_emas.1.network.",
}
REQUEST = SampleRequest(torch.arange(4), None, (3,), 0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A diffusion run of seven steps with three averages, and its checkpoint."""
    file = tmp_path_factory.mktemp("teacher") / "last.ckpt"
    module, fit = DiffusionModule(wake(mlp()), PATH, ema=AVERAGES), trainer(7)
    fit.fit(module, loader())
    fit.save_checkpoint(file, weights_only=False)
    return module, file


@pytest.fixture(scope="module")
def student(teacher):
    """A student of three steps, whose weighting head and teacher must not get into the export."""
    file = teacher[1].with_name("student.ckpt")
    module = ConsistencyModule(mlp(), TeacherVelocity(), str(teacher[1]), path=PATH)
    fit = trainer(3)
    fit.fit(module, loader())
    fit.save_checkpoint(file, weights_only=False)
    return module, file


def scm_export(checkpoint, out, *options):
    main(["export", f"--checkpoint={checkpoint}", f"--out={out}", *options])
    return load_file(out)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(["export", *arguments])
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("scm: error: ")
    assert line.count("\n") == 1
    return line


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_the_average_is_exported_and_draws_the_same_samples(kind, request, tmp_path, capsys):
    """Loaded into a new network, without this package's checkpoints, and sampled by a new run."""
    module, file = request.getfixturevalue(kind)
    out = tmp_path / "a.safetensors"
    found = scm_export(file, out)
    assert_equal(found, module.ema.network.state_dict())
    assert str(out) in capsys.readouterr().out
    network = mlp()
    network.load_state_dict(found)
    if kind == "teacher":
        other = DiffusionModule(network, PATH)
    else:
        other = ConsistencyModule(network, path=PATH)
    with torch.no_grad():
        expected = module.draw(REQUEST, module.draws())
        drawn = other.draw(REQUEST, other.draws())
    for name, samples in expected.items():
        assert samples.x0.std() > 0.1
        assert torch.equal(drawn[name].x0, samples.x0)


def test_every_network_of_a_checkpoint_can_be_had(teacher, tmp_path):
    """Averages by the names of their profiles, trained weights by `trained`; with what they are."""
    module, file = teacher
    state = module.state_dict()
    for name, prefix in {**WHERE, "": "network."}.items():
        out = tmp_path / f"of{name}.safetensors"
        found = scm_export(file, out, f"--ema={name}" if name else "--weights=trained")
        expected = {key[len(prefix) :]: state[key] for key in state if key.startswith(prefix)}
        assert_equal(found, expected)
        kind = "ema" if name else "trained"
        read = Export.read(out)
        assert (read.module, read.sigma_data, read.step) == ("diffusion", PATH.sigma_data, 7)
        assert (read.weights, read.profile) == (kind, name)
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 4


def test_an_export_is_a_teacher(teacher, tmp_path, capsys):
    """The same network as the checkpoint's, the same student, the same refusals."""
    _, file = teacher
    out = tmp_path / "teacher.safetensors"
    scm_export(file, out)
    assert "give it as a student's teacher" in capsys.readouterr().out
    assert_equal(load_teacher(out, mlp(), PATH).state_dict(), load_file(out))
    students = [
        ConsistencyModule(mlp(), TeacherVelocity(), str(each), path=PATH) for each in (file, out)
    ]
    for name, weight in students[0].student.state_dict().items():
        assert torch.equal(students[1].student.state_dict()[name], weight)
    with pytest.raises(ValueError, match=r"was trained with 0.7, the student has 0.4"):
        load_teacher(out, mlp(), TrigFlow(0.4))
    with pytest.raises(ValueError, match=r"it has no weight 'conditioning.label.weight'"):
        load_teacher(out, mlp(num_classes=4), PATH)
    with pytest.raises(ValueError, match=r"teacher\.safetensors has only weights"):
        SavedRun.read(out)


def test_a_student_is_no_teacher(student, tmp_path):
    out = tmp_path / "student.safetensors"
    scm_export(student[1], out, "--weights=trained")
    assert_equal(load_file(out), student[0].student.state_dict())
    with pytest.raises(ValueError, match=r"a teacher must be a diffusion run, .* is a consistency"):
        load_teacher(out, mlp(), PATH)


def test_nothing_is_overwritten_unasked(teacher, tmp_path, capsys):
    _, file = teacher
    out = tmp_path / "a.safetensors"
    out.write_text("precious")
    given = [f"--checkpoint={file}", f"--out={out}"]
    assert "is there already; give another name, or --overwrite" in refused(capsys, *given)
    assert out.read_text() == "precious"
    main(["export", *given, "--overwrite"])
    assert Export.read(out).step == 7


def test_what_is_not_there_is_refused(teacher, tmp_path, capsys):
    _, file = teacher
    given, out = f"--checkpoint={file}", f"--out={tmp_path / 'a.safetensors'}"
    assert "out must be a file FILE.safetensors" in refused(capsys, given, "--out=a.ckpt")
    line = refused(capsys, given, out, "--ema=0.2")
    assert "one of the averages" in line
    assert "last.ckpt, 2e-05M, 0.05, 0.1, got 0.2" in line
    line = refused(capsys, given, out, "--ema=0.1", "--weights=trained")
    assert "ema names an average, got 0.1 with weights trained" in line
    missing = f"--checkpoint={tmp_path / 'none.ckpt'}"
    assert "there is no checkpoint" in refused(capsys, missing, out)
    older = torch.load(file, weights_only=True)
    del older["scm_lightning"]["trained"], older["scm_lightning"]["averages"]
    torch.save(older, tmp_path / "older.ckpt")
    given = f"--checkpoint={tmp_path / 'older.ckpt'}"
    assert "does not say which" in refused(capsys, given, out, "--weights=trained")
    assert "which has no names in an older" in refused(capsys, given, out, "--ema=0.05")
    main(["export", given, out])
    assert Export.read(tmp_path / "a.safetensors").profile == ""
