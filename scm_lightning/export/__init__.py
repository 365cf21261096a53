# SPDX-License-Identifier: Apache-2.0
"""Floor 7: trained networks in the hands of others: what is needed to sample, and samples."""

from scm_lightning.export.facts import SamplingFacts, StudentSampling
from scm_lightning.export.network_of import build_network, can_be_built
from scm_lightning.export.sampler import Sampler, load

__all__ = ["Sampler", "SamplingFacts", "StudentSampling", "build_network", "can_be_built", "load"]
