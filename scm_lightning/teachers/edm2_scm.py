# SPDX-License-Identifier: Apache-2.0
r"""Networks of edm2_sCM, the public reimplementation of sCM: teachers, and students to convert.

F has our sign, and its time is t. Two architectures: DDPM++ on CIFAR-10, EDM2 on ImageNet 64.
Source: EpiGenomicsCode/edm2_sCM, training/networks_trigflow.py and networks_trigflow_ddpmpp.py.
Axes: B batch, C channels, H and W pixels.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from scm_lightning.given_files import given_path
from scm_lightning.networks import EDM2UNet, UNet
from scm_lightning.storage.persistent_pickle import PersistentObject, read_persistent
from scm_lightning.teachers.edm2 import LICENCE, NOISE_RANGE, source_of
from scm_lightning.teachers.edm2_maps import dropout_of, edm2_options, edm2_unet
from scm_lightning.teachers.edm_layout import Layout
from scm_lightning.teachers.edm_maps import ddpmpp_from_edm2_scm, without_prefix
from scm_lightning.teachers.unconditional import ClassTeacher

Kind = Literal["diffusion", "consistency", "segments"]
LOSSES: dict[str, Kind] = {
    "TrigFlowLoss": "diffusion",
    "TrigFlowSCMLoss": "consistency",
    "TrigFlowMSSCDLoss": "segments",
}
"""What a network is, by the loss that its file holds."""
OTHERS = {
    "Precond": "an EDM2 network of sigma; the files mscd_* are students of another method",
    "EDMPrecond": "an EDM network of sigma; the files mm_s8 are students of another method",
}


@dataclass(frozen=True)
class EDM2SCMFile:
    """Network of a file of edm2_sCM.

    Attributes:
        source: name of the file.
        network: the package's own network with the same F.
        options: what it is built with.
        sigma_data: standard deviation of the data that it was trained on. Data units.
        kind: a diffusion model, a consistency model, or one of several segments; None if the file
            does not say.
    """

    source: str
    network: EDM2UNet | UNet
    options: dict[str, Any]
    sigma_data: float
    kind: Kind | None

    @classmethod
    def read(cls, path: str) -> "EDM2SCMFile":
        """Read a file without running code of it.

        Args:
            path: a .pkl file as published.

        Raises:
            OSError: if it cannot be read.
            ValueError: if it is no such network, damaged or hostile.
        """
        path = given_path(path)
        file = read_persistent(path)
        try:
            network, options = _opened(file.ema)
            sigma_data = float(file.ema.attribute("sigma_data"))
        except ValueError as error:
            raise ValueError(
                f"{path} must be a network of edm2_sCM: {error}; give one of its teachers, or of "
                "its sCT or sCD students"
            ) from error
        kind = None if file.loss_fn is None else LOSSES.get(file.loss_fn.class_name)
        if network.conditioning.end is not None:
            kind = "segments"
        return cls(source_of(path), network.eval(), options, sigma_data, kind)


class EDM2SCMTeacher(ClassTeacher):
    """Teacher of edm2_sCM: `teacher: {class_path: EDM2SCMTeacher, init_args: {path: FILE}}`.

    Args:
        path: a .pkl file as published.

    Attributes:
        network: the package's own network with the same F.

    Raises:
        ValueError: if the file is no such teacher.
    """

    def __init__(self, path: str) -> None:
        file = EDM2SCMFile.read(path)
        if file.kind not in ("diffusion", None):
            raise ValueError(
                f"a teacher must be a diffusion model, {path} is a student of edm2_sCM; give a "
                "teacher's file, or let a student go on from this one: scm convert"
            )
        super().__init__(
            f"edm2_sCM {file.source}",
            file.network.data_shape,
            num_classes=file.network.conditioning.num_classes,
            noise_range=NOISE_RANGE,
            sigma_data=file.sigma_data,
            licence=LICENCE,
        )
        self.network = file.network

    def F_of_class(self, u: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """See `ClassTeacher`."""
        F: Tensor = self.network(u, t, labels)
        return F

    def own_network(self) -> nn.Module:
        """See `SourceTeacher`."""
        return self.network


def _opened(net: PersistentObject) -> tuple[EDM2UNet | UNet, dict[str, Any]]:
    """The package's own network, and the options that it is built with."""
    if net.class_name == "TrigFlowPrecond":
        return edm2_unet(net, is_trigflow=True), edm2_options(net, is_trigflow=True)
    if net.class_name == "TrigFlowDDPMPPPrecond":
        tensors, dropout = without_prefix(net.state_dict(), "unet."), dropout_of(net)[0]
        layout = Layout.read(tensors)
        network = ddpmpp_from_edm2_scm(tensors, {"dropout": dropout})
        return network, {
            "data_shape": list(layout.data_shape),
            "model_channels": layout.model_channels,
            "channel_mult": [width // layout.model_channels for width in layout.widths],
            "num_blocks": layout.num_blocks,
            "attention_pixels": layout.attending_sides(),
            "dropout": dropout,
            "num_classes": layout.num_classes,
            "augment_channels": layout.augment_channels,
            "norm": "affine_double",
        }
    known = OTHERS.get(net.class_name, "TrigFlowPrecond and TrigFlowDDPMPPPrecond are known")
    raise ValueError(f"its class is {net.class_name}: {known}")
