# SPDX-License-Identifier: Apache-2.0
"""Processes that train apart are found out before their first step; those that do not, go on."""

import json

import pytest
import torch

from scm_lightning.callbacks import GradientSync
from scm_lightning.callbacks.gradient_sync import checksum

MODULUS = 2**64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_checksum_in_exact_integers(randn, dtype):
    x = (100 * randn(3, 5)).to(dtype)
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[x.element_size()]
    bits = x.flatten().view(integer).tolist()
    expected = sum((2 * i + 1) * each for i, each in enumerate(bits)) % MODULUS
    assert int(checksum(x)) % MODULUS == expected


def test_checksum_sees_a_bit_an_exchange_and_a_nan(randn):
    x = randn(40, 30).float()
    flipped = x.clone()
    flipped.view(torch.int32)[39, 29] ^= 1
    exchanged = x.clone()
    exchanged[[3, 30]] = x[[30, 3]]
    spoiled = x.clone()
    spoiled[0, 0] = torch.nan
    seen = {int(checksum(each)) for each in (x, flipped, exchanged, spoiled)}
    assert len(seen) == 4
    assert checksum(x.t().contiguous().t()) == checksum(x)


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("nothing reduced", "the gradient of network."),
        ("parameter too late", "the gradient of late"),
        ("head left whole", "the gradient of weighting_head.linear.weight"),
    ],
)
def test_processes_that_train_apart_are_refused(guarded, name, parameter):
    """All, before their first step; the first to tell names the first parameter that differs."""
    found = guarded[1][name]["first"]
    assert found["codes"] == [2, 2]
    assert [each["step"] for each in found["stopped"]] == [0, 0]
    assert found["log"].count("error: all processes must have the same weights") == 1
    assert found["log"].count(f"before step 1 they differ in {parameter}") == 1


@pytest.mark.parametrize(
    "name", ["slice kept", "process forgotten", "slices swapped", "sync left off"]
)
def test_sharded_gradients_that_are_no_mean_are_refused(guarded, name):
    """All processes, before their first step; one line names the network."""
    found = guarded[1][name]["first"]
    assert found["codes"] == [2, 2], found["log"]
    assert [each["step"] for each in found["stopped"]] == [0, 0]
    assert found["log"].count("error: the gradient of a sharded parameter must be the mean") == 1
    assert found["log"].count("before step 1 that of network.") == 1


def test_the_check_of_sharded_gradients_changes_nothing(guarded):
    """Accumulated and clipped; all that is saved is the same to the last bit."""
    ends = []
    for name in ("whole in parts", "unchecked"):
        assert guarded[1][name]["first"]["codes"] == [0, 0], guarded[1][name]["first"]["log"]
        ends.append(torch.load(guarded[0] / name / "c" / "last.ckpt", weights_only=True))
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(ends[0][part], ends[1][part], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "lines"), [("unused", (1, 2)), ("unused unchecked", (1, 2)), ("unused in 1", (1,))]
)
def test_a_parameter_that_ddp_waits_for_is_named(guarded, name, lines):
    """With the strategy that looks for such; the one process that misses a gradient ends both."""
    found = guarded[1][name]["first"]
    assert set(found["codes"]) == {2}, found["log"]
    assert found["log"].count("step 1 gave none to network.spare, 1 such in all") in lines
    assert "ddp_find_unused_parameters_true" in found["log"]
    assert "a machine that computes wrongly" not in found["log"]


@pytest.mark.parametrize("name", ["unbroken", "bad sharded", "bad", "unused, looked for"])
def test_processes_that_train_together_go_on(guarded, name):
    """Also if their first gradients are not finite; at the end they are equal to the last bit."""
    folder, results = guarded
    assert results[name]["first"]["codes"] == [0, 0], results[name]["first"]["log"]
    ends = [torch.load(folder / name / f"end.{rank}")["state"] for rank in range(2)]
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=0, atol=0, msg=key)


def test_a_negative_interval_is_refused():
    with pytest.raises(ValueError, match="at least 0, got -1"):
        GradientSync(every_n_steps=-1)


def test_weights_that_come_apart_later_are_found(guarded):
    """One bit in one process, after the fourth step; checks every third step."""
    found = guarded[1]["bit flipped"]["first"]
    assert found["codes"] == [2, 2], json.dumps(found)
    assert "before step 6 they differ in the weights of ema.network." in found["log"]
