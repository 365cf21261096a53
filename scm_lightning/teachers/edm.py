# SPDX-License-Identifier: Apache-2.0
"""Networks of EDM as teachers: DDPM++, NCSN++ and ADM, from the files that NVIDIA published.

The names `-vp` and `-ve` of the files say the architecture, DDPM++ and NCSN++; all have EDM's own
preconditioning but those named baseline.
Source: Karras et al., arXiv 2206.00364; NVlabs/edm, training/networks.py.
Axes: B batch, C channels, H and W pixels.
"""

import copy
import math
from collections.abc import Mapping

from torch import Tensor, nn

from scm_lightning.networks import TimeEmbedding, UNet
from scm_lightning.teachers.edm_layout import Layout, check_names
from scm_lightning.teachers.edm_maps import ddpmpp_from_edm, without_prefix
from scm_lightning.teachers.edm_networks import ADM, EDMNetwork, NCSNpp
from scm_lightning.teachers.edm_preconditioning import EDM, IDDPM, VE, VP, Preconditioning
from scm_lightning.teachers.own_runs import weights_mismatch
from scm_lightning.teachers.published import Published, read_published
from scm_lightning.teachers.unconditional import ClassTeacher

LICENCE = "CC BY-NC-SA 4.0"
EDM_RANGE = (0.002, 80.0)
"""Sigmas of EDM's own sampler, which its networks were trained around."""


class EDMTeacher(ClassTeacher):
    """Network of EDM: `teacher: {class_path: EDMTeacher, init_args: {path: FILE}}`.

    A student can start from a DDPM++; NCSN++ and ADM are teachers only.

    Args:
        path: a .pkl file as published, or a .safetensors file of its weights by their published
            names, which is taken for one with EDM's own preconditioning.
        unconditional: a second such file, of a network without classes, that stands for no class
            in guidance; EDM's networks of classes were never trained without one. None refuses
            guidance.

    Attributes:
        network: the network, called with x and c_noise of its preconditioning.

    Raises:
        ValueError: if a file is no such network.
    """

    def __init__(self, path: str, unconditional: str | None = None) -> None:
        found = read_published(path)
        try:
            tensors = without_prefix(found.tensors, "model.") or found.tensors
            layout = Layout.read(tensors)
            preconditioning = _preconditioning(found)
            network = _network(tensors, layout, preconditioning)
        except ValueError as error:
            raise ValueError(
                f"{path} must be a network of EDM: {error}; give one of the files of NVlabs/edm"
            ) from error
        super().__init__(
            f"{_kind(network)} of EDM, {found.name}",
            layout.data_shape,
            None if unconditional is None else EDMTeacher(unconditional),
            num_classes=layout.num_classes,
            noise_range=preconditioning.noise_range,
            sigma_data=preconditioning.sigma_data,
            licence=LICENCE,
        )
        self.network, self.preconditioning = network, preconditioning

    def F_of_class(self, u: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """See `ClassTeacher`."""
        x, c_noise = self.preconditioning.call(u, t, self.path)
        output = self.network(x, c_noise, labels)
        return self.preconditioning.F(output, u, t)

    def own_network(self) -> nn.Module | None:
        """DDPM++ with EDM's preconditioning as the package's U-Net of t; None for the others."""
        if not isinstance(self.network, UNet) or self.preconditioning.predicts_noise:
            return None
        network = copy.deepcopy(self.network)
        network.conditioning.time_embedding = TimeEmbedding("log", sigma_data=self.sigma_data)
        output = network.output.requires_grad_(False)
        output.weight.neg_()
        if output.bias is not None:
            output.bias.neg_()
        output.requires_grad_(True)
        return network

    def amplification(self) -> str:
        """See `SourceTeacher`."""
        if not self.preconditioning.predicts_noise:
            return ""
        most = 1 / math.cos(self.t_range[1])
        return f"its prediction's error is divided by cos t: up to {most:.0f} times"


def _kind(network: nn.Module) -> str:
    names = {UNet: "DDPM++", NCSNpp: "NCSN++", ADM: "ADM"}
    return names[type(network)]


def _network(
    tensors: Mapping[str, Tensor], layout: Layout, preconditioning: Preconditioning
) -> nn.Module:
    """Network with the weights of a file, told from their names."""
    kind: type[EDMNetwork] | None = NCSNpp if "map_noise.freqs" in tensors else None
    kind = ADM if "out_conv.weight" in tensors else kind
    halves = 2 if isinstance(preconditioning, IDDPM) else 1
    if layout.out_channels != halves * layout.data_shape[0]:
        raise ValueError(
            f"it has {layout.out_channels} channels behind {layout.data_shape[0]} before it"
        )
    if kind is None:
        return ddpmpp_from_edm(tensors)
    weights = {name: each for name, each in tensors.items() if name != "map_augment.weight"}
    network = kind(layout)
    check_names(weights, network.state_dict())
    if mismatch := weights_mismatch(weights, network):
        raise ValueError(mismatch)
    network.to(weights["map_layer0.weight"].dtype).load_state_dict(weights)
    return network


def _preconditioning(found: Published) -> Preconditioning:
    """Preconditioning by the file's outermost class."""
    if found.class_name in ("", "EDMPrecond"):
        return EDM(noise_range=EDM_RANGE, sigma_data=float(found.attribute("sigma_data", 0.5)))
    if found.record is None or found.class_name not in ("VPPrecond", "VEPrecond", "iDDPMPrecond"):
        raise ValueError(
            f"its class is {found.class_name}, known are EDMPrecond, VPPrecond, VEPrecond and "
            "iDDPMPrecond"
        )
    number = found.record.attribute
    noise_range = (float(number("sigma_min")), float(number("sigma_max")))
    if found.class_name == "VEPrecond":
        return VE(noise_range=noise_range)
    if found.class_name == "iDDPMPrecond":
        check_names([name for name in found.tensors if name == "u"], ["u"])
        noise_range = (noise_range[0], min(noise_range[1], EDM_RANGE[1]))  # of 20,000: no data left
        return IDDPM(noise_range=noise_range, sigmas=found.tensors["u"])
    beta_min = float(number("beta_min"))
    return VP(
        noise_range=noise_range,
        beta_min=beta_min,
        beta_max=beta_min + float(number("beta_d")),
        num_steps=int(number("M")),
    )
