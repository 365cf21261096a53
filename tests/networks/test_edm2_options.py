# SPDX-License-Identifier: Apache-2.0
"""Options of the EDM2 U-Net for published weights: modulation, features of the time, norms."""

import pytest
import torch
from test_edm2 import SHAPE, SIGMA_DATA, build, inputs, step, wake
from torch import nn

from scm_lightning.autodiff.dual import fallback_calls
from scm_lightning.networks import TimeEmbedding
from scm_lightning.networks.edm2_blocks import GainModulation, MPDoubleNorm, UnscaledDoubleNorm

EDM2_TIME = TimeEmbedding("log", "mp_fourier", sigma_data=SIGMA_DATA)
OPTIONS = {
    "edm2_sCM": {"modulation": "unscaled", "exact_norm": True},
    "EDM2": {"modulation": "gain", "exact_norm": True, "time_embedding": EDM2_TIME},
}


def test_an_unscaled_shift_is_not_balanced(randn):
    x, emb = randn(5, 6, 4, 3), randn(5, 8)
    balanced, unscaled = MPDoubleNorm(6, 8, shift=True), UnscaledDoubleNorm(6, 8)
    unscaled.load_state_dict(balanced.state_dict())
    torch.testing.assert_close(
        unscaled.double()(x, emb), balanced.double()(x, emb) * 2**0.5, rtol=1e-12, atol=0
    )


def test_modulation_by_a_gain_by_hand(randn):
    """h (1 + gain s(emb)), nothing of it normalised but the weights; fresh it does nothing."""
    x, emb = 3 * randn(5, 6, 4, 3), randn(5, 8)
    layer = GainModulation(6, 8).double()
    assert torch.equal(layer(x, emb), x)
    nn.init.constant_(layer.gain, -0.7)
    rows = layer.linear.weight / layer.linear.weight.norm(dim=1, keepdim=True)
    expected = x * (1 - 0.7 * emb @ rows.T)[:, :, None, None]
    torch.testing.assert_close(layer(x, emb), expected, rtol=1e-6, atol=1e-6)


def test_its_own_constant_is_in_every_norm_of_the_network(randn):
    """Weights of a thousandth, so that eps = 1e-4 beside the root takes a tenth and more of all."""
    plain, exact = wake(build()), wake(build(exact_norm=True))
    u, t = randn(5, *SHAPE), torch.ones(5).double()
    for network in (plain, exact):
        for name, parameter in network.named_parameters():
            if name != "out_gain":
                parameter.data *= 1e-3
    # 1 / (1e-3 + 1e-4) by the rms of the last layer's rows alone: the trunk before is smaller too.
    ratio = (exact(u, t).std() / plain(u, t).std()).item()
    assert 0.5 < ratio < 1 / 1.1


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_dual_numbers_pass_the_options(randn, options):
    """Loss, derivative and gradients in float64 equal `func`, with attention and dropout."""
    network, given = wake(build(guided=True, dropout=0.4, **options)).train(), inputs(randn)
    for name, parameter in network.named_parameters():
        if name.endswith("norm.gain"):
            nn.init.constant_(parameter, 0.7)
    fallback_calls.clear()
    found, oracle = (step(method, network, given) for method in ("dual", "func"))
    assert set(fallback_calls) <= {"tan"}  # of the times alone
    torch.testing.assert_close(found, oracle, rtol=1e-9, atol=1e-9)
    assert float(oracle[2].abs().max()) > 0.1
    assert all(float(gradient.norm()) > 0 for gradient in oracle[3:])


def test_a_shift_belongs_to_the_papers_modulation():
    with pytest.raises(ValueError, match="shift belongs to modulation 'double', got it with 'gain"):
        build(shift=True, modulation="gain")
