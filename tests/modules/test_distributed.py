# SPDX-License-Identifier: Apache-2.0
"""Several processes on parts of a batch against one process on the whole, under DDP and FSDP2.

Losses, gradient norms, samples and whole checkpoints, with averages and optimizer states; and runs
that go on with another number of processes.
"""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from distributed_program import MAPPED, MAPPED_STOPS
from distributed_runs import BF16, CASES, EVERY, FEW_STEPS, NUM_SAMPLES, NUM_STEPS, Place
from safetensors.torch import load_file
from torch import Tensor

from scm_lightning.cli import main
from scm_lightning.modules import FSDP2Strategy
from scm_lightning.storage import Checkpoint

pytestmark = pytest.mark.timeout(600)  # all runs of a strategy are the set-up of its first test
PROGRAM = Path(__file__).with_name("distributed_program.py")
STRATEGIES = ["ddp", "fsdp2"]
TOLERANCE = {"64-true": 1e-10, "32-true": 4e-6}
"""Relative to the largest number of a tensor, or to 1 if that is smaller. Measured: 6e-7."""
SAMPLE_TOLERANCE = {"64-true": 1e-8, "32-true": 2e-3}
"""Likewise. A sample runs through a random, steep network up to five times. Measured: 3e-4."""


def tensors(tree, name=""):
    """Tensors and numbers of nested containers, by their place."""
    if isinstance(tree, dict):
        return {k: v for key in tree for k, v in tensors(tree[key], f"{name}.{key}").items()}
    if isinstance(tree, list):
        return tensors(dict(enumerate(tree)), name)
    return {name: torch.as_tensor(tree)} if isinstance(tree, Tensor | float) else {}


def assert_same_checkpoint(one, other, tolerance):
    for part in ("state_dict", "optimizer_states"):
        found, expected = (tensors(Checkpoint(each).read()[part]) for each in (one, other))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            scale = float(value.abs().max()) if value.numel() else 0.0
            torch.testing.assert_close(
                found[name], value, rtol=0, atol=tolerance * max(scale, 1.0), msg=name
            )


def start(strategy, folder, *plans, timeout=280):
    """Let processes do their runs, in folders below one."""
    log = folder / f"{strategy}.log"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", PROGRAM, strategy, folder, *plans],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=log.open("w"),
        start_new_session=True,  # to end its forks too
    )
    try:
        code = process.wait(timeout=timeout)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert code == 0, log.read_text()[-5000:]


@pytest.fixture(scope="module", params=STRATEGIES)
def together(request, alone):
    """Two processes, which do all runs of a strategy one after the other; then four, which go on.

    The folder of the two.
    """
    start(request.param, alone.parent, "two", "four")
    return alone.parent / f"{request.param}2"


@pytest.fixture(scope="module")
def four(together):
    """The folder of the four."""
    return together.with_name(f"{together.name[:-1]}4")


def records(folder, name, stop=None):
    stop = stop or EVERY.get(name, BF16).steps
    files = sorted(folder.glob(f"{name}.{stop}.?.pt"))
    return [torch.load(file, weights_only=False) for file in files]


def assert_trained_alike(case, found_in, alone):
    """All processes saw the same losses and gradient norms, and left the same checkpoint."""
    tolerance = TOLERANCE[EVERY[case].precision]
    (expected,), found = records(alone, case), records(found_in, case)
    steps = EVERY[case].steps
    assert len(expected["losses"]) == len(found[0]["losses"]) >= steps
    for of_process in found:
        assert of_process["losses"] == pytest.approx(expected["losses"], rel=tolerance)
        assert of_process["grad_norms"] == pytest.approx(expected["grad_norms"], rel=tolerance)
    file = f"{case}.{steps}.ckpt"
    assert_same_checkpoint(found_in / file, alone / file, tolerance)


@pytest.mark.parametrize("case", CASES)
def test_training_together_is_training_alone(alone, together, case):
    assert_trained_alike(case, together, alone)


def test_four_processes_train_as_one(alone, four):
    """Three rows each; weights of three and of one rows leave some processes without a part."""
    assert_trained_alike("scd_dual", four, alone)
    assert len(records(four, "scd_dual")) == 4


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_four_processes_train_as_one_in_every_case(strategy, tmp_path):
    start(strategy, tmp_path, "every", timeout=1400)
    one = Place(tmp_path / "auto1")
    one.folder.mkdir()
    for case in EVERY:
        one.run(case)
        assert_trained_alike(case, tmp_path / f"{strategy}4", one.folder)


@pytest.mark.parametrize("case", CASES)
def test_samples_do_not_depend_on_the_processes(alone, together, case):
    """Three samples in two orders in one process, two samples and an empty order in the other."""
    (expected,), found = records(alone, case), records(together, case)
    joined = found[0]["samples"] | found[1]["samples"]
    assert joined.keys() == expected["samples"].keys()
    assert {index for _, index in joined} == set(range(NUM_SAMPLES))
    tolerance = SAMPLE_TOLERANCE[CASES[case].precision]
    for name, x0 in joined.items():
        scale = float(expected["samples"][name].abs().max())
        torch.testing.assert_close(x0, expected["samples"][name], rtol=0, atol=tolerance * scale)


def test_a_run_goes_on_under_any_strategy(alone, together):
    """From its own checkpoint, from one process's, and one process from theirs.

    Lightning rounds float64 weights to float32 when it restores them, with any strategy.
    """
    Place(together).run("scd_dual", 2, 4, name="left", ckpt=together / "scd_dual.2.ckpt")
    for name in ("resumed", "taken_over", "left"):
        assert_same_checkpoint(together / f"{name}.4.ckpt", alone / "scd_dual.4.ckpt", 1e-6)


def test_a_run_moves_from_two_processes_to_four_and_to_one(alone, together, four, capsys):
    """With the loader's own position: the losses are those of the run that stayed in one process.

    What is loaded is to the bit what was saved, whoever had which part of it.
    """
    (expected,) = records(alone, "mapped", NUM_STEPS)
    first, second = MAPPED_STOPS
    places = [(together, first), (four, second)]
    found = [records(folder, "mapped", stop)[0]["losses"] for folder, stop in places]
    assert found[0] + found[1] == pytest.approx(expected["losses"][:second], rel=1e-6)
    begun = [folder / "mapped" / "last.ckpt" for folder, _ in places]
    assert_same_checkpoint(four / "mapped.loaded.ckpt", begun[0], 0)
    capsys.readouterr()
    for (folder, stop), ckpt in zip(places, begun, strict=True):
        Place(folder).run(MAPPED, stop, name="back", ckpt=ckpt, mapped=True)
        (rest,) = records(folder, "back", NUM_STEPS)
        assert rest["losses"] == pytest.approx(expected["losses"][stop:], rel=1e-6)
        assert_same_checkpoint(folder / "back.loaded.ckpt", ckpt, 0)
        unbroken = alone / "mapped" / "last.ckpt"
        assert_same_checkpoint(folder / "back" / "last.ckpt", unbroken, 1e-6)
        processes = folder.name[-1]
        said = " ".join(capsys.readouterr().out.split())
        assert f"has those of {processes} processes, this run has 1 on cpu" in said


def test_exports_do_not_depend_on_the_processes(alone, together, tmp_path):
    """Whole weights, by their usual names."""
    exported = []
    for folder in (alone, together):
        out = tmp_path / f"{folder.name}.safetensors"
        checkpoint = folder / f"scd_dual.{FEW_STEPS}.ckpt"
        main(["export", f"--checkpoint={checkpoint}", f"--out={out}", "--ema=0.2"])
        exported.append(load_file(out))
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        for name, weight in exported[-1].items():
            assert torch.equal(weight, state[f"further_emas.0.network.{name}"])
    one, other = exported
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-10)


def test_bf16_runs_on_float32_weights(alone, together):
    """Rounding depends on the shape of the batch, so only the first loss agrees, and roughly."""
    (expected,), found = records(alone, "bf16"), records(together, "bf16")
    assert found[0]["losses"][0] == pytest.approx(expected["losses"][0], rel=0.01)
    assert all(map(math.isfinite, found[0]["losses"]))


def test_processes_draw_noise_of_their_own(together):
    one, other = records(together, "sct_dual")
    assert one["seed"] != other["seed"]


def test_unfit_data_are_refused_in_all_processes(together):
    """Data of one process, a hundred times too wide, stop both, at the same step."""
    messages = [torch.load(together / f"found.{rank}.pt")["statistics"] for rank in range(2)]
    assert messages[0] == messages[1]
    assert "must have standard deviation sigma_data" in messages[0]


def test_fsdp2_shares_every_network_and_misses_none(alone, together):
    """Half of each weight per process. A head left whole, the mistake, ends up as two heads."""
    if together.name != "fsdp22":
        pytest.skip("nothing is sharded")
    found = [torch.load(together / f"found.{rank}.pt") for rank in range(2)]
    for shares in zip(*(each["shares"].items() for each in found), strict=True):
        names, values = zip(*shares, strict=True)
        assert len(set(names)) == 1
        assert sum(values) == pytest.approx(1.0)
        assert max(values) < 0.7
    assert {*found[0]["shares"]} == {"ema", "network"}
    assert float((found[0]["whole_head"] - found[1]["whole_head"]).abs().max()) > 1e-3
    assert all("got 'bare' outside" in each["bare"] for each in found)
    assert all("train with compile: false" in each["compiled"] for each in found)
    for one, other in zip(*(each["start"] for each in found), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_loss_scale_of_its_own_in_every_process_is_refused():
    """The CPU has no 16-mixed, so the strategy is asked directly."""
    strategy = FSDP2Strategy()
    strategy.precision_plugin = SimpleNamespace(precision="16-mixed")
    with pytest.raises(ValueError, match="32-true or bf16-mixed, got 16-mixed"):
        strategy.setup_environment()
