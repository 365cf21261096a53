# SPDX-License-Identifier: Apache-2.0
"""Samples of an exported network, in Python, without Lightning and without a configuration.

    load("FILE.safetensors").sample(["cat", "dog"], steps=2, seed=0)      # two pictures

Sample i of a seed is that of `scm predict`: the noise of each has a generator of its own. Axes: N
samples, ... data axes.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from scm_lightning.core import Conditions, check_num_steps, sample_generators, standard_normal
from scm_lightning.data.latents import Autoencoder
from scm_lightning.data.pictures import image_grid
from scm_lightning.export.facts import SamplingFacts, StudentSampling
from scm_lightning.export.network_of import build_network
from scm_lightning.export.requests import again, encoded, labels_of, rows_of
from scm_lightning.given_files import given_path, meant_path
from scm_lightning.networks.classes import num_known_classes
from scm_lightning.networks.condition_names import condition_names
from scm_lightning.sampling import DiffusionSampling, Draw, few_step_draw
from scm_lightning.saying import warn
from scm_lightning.storage import Export
from scm_lightning.storage.export import SUFFIX
from scm_lightning.teachers import weights_mismatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHIPPED = Path(__file__).parents[1] / "pretrained" / f"digits{SUFFIX}"
"""Student of 8x8 digits that comes with the package; see `configs/digits_scd.yaml`."""
NUM_SAMPLES = 20
"""Samples that are drawn where neither their number nor their conditions are given."""


def load(
    file: str | Path = SHIPPED,
    network: nn.Module | None = None,
    device: str | torch.device = "cpu",
    autoencoder: str | None = None,
    text_encoder: str | None = None,
) -> "Sampler":
    """Load a network that `scm export` wrote, to sample from.

    Args:
        file: the file; by default the student of digits that comes with the package.
        network: the network, for a file that does not say which it is or names a class of your
            own; its weights are replaced.
        device: where it computes.
        autoencoder: folder or name of the autoencoder of latents; None for the one in the file.
        text_encoder: folder of the encoder of texts; None for the one in the file.

    Raises:
        ValueError: if the file is missing, damaged, or of another kind, or does not say what is
            needed to sample.
    """
    path = Path(given_path(file))
    if not path.exists():
        raise ValueError(f"there is no file {path}{meant_path(path) or '; write it by scm export'}")
    if path.suffix != SUFFIX or path.is_dir():
        raise ValueError(
            f"a network to load must be a file FILE{SUFFIX}, got {path}; write one with `scm "
            f"export --checkpoint {path} --out FILE{SUFFIX}`"
        )
    export = Export.read(path)
    try:
        return Sampler.of(export, network, device, autoencoder, text_encoder)
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from error


class Sampler:
    """A trained network, and how it is sampled.

    Args:
        network: F(u, t, labels, guidance), on the device where it computes.
        facts: how it is sampled, and what its samples are.
        autoencoder: folder or name of the autoencoder of latents; None for the one of the data.
        text_encoder: folder of the encoder of texts; None for the one of the data.

    Raises:
        ValueError: if the facts do not say how it is sampled, or of which shape data are.
    """

    def __init__(
        self,
        network: nn.Module,
        facts: SamplingFacts,
        autoencoder: str | None = None,
        text_encoder: str | None = None,
    ) -> None:
        if facts.sampling is None:
            raise ValueError(
                "it does not say how it is sampled; export it from its run's folder, or with "
                "--config"
            )
        arguments = (facts.network or {}).get("init_args", {})
        shape = facts.data.shape if facts.data else arguments.get("data_shape")
        if not shape:
            raise ValueError(
                "it does not say of which shape data are; export it where the data of its run lie"
            )
        self.network, self.facts, self.shape = network, facts, tuple(shape)
        self.autoencoder, self.text_encoder = autoencoder, text_encoder
        self.path = facts.path
        known, num = num_known_classes(network), facts.data.num_classes if facts.data else 0
        if 0 < known < num:
            raise ValueError(
                f"its data have {num} classes, its network knows {known}; export it again"
            )

    @staticmethod
    def of(
        export: Export,
        network: nn.Module | None = None,
        device: str | torch.device = "cpu",
        autoencoder: str | None = None,
        text_encoder: str | None = None,
    ) -> "Sampler":
        """Build the sampler of an export; the arguments are those of `load`.

        Raises:
            ValueError: as `load`.
        """
        facts = SamplingFacts.of(export)
        if network is None:
            if facts.network is None:
                raise ValueError(
                    "it does not say which network it is of; export it from its run's folder, or "
                    "give the network, network=..."
                )
            network = build_network(facts.network, export.tensors)
        else:
            if mismatch := weights_mismatch(export.tensors, network):
                raise ValueError(f"the given network does not fit: {mismatch}")
            network.load_state_dict(dict(export.tensors))
        network = network.eval().requires_grad_(False)
        try:
            network = network.to(device)
        except (RuntimeError, AssertionError) as error:
            line = str(error).splitlines()[0]
            raise ValueError(
                f"device must be cpu, or cuda where there is a GPU, got {device}: {line[:80]}"
            ) from error
        return Sampler(network, facts, autoencoder, text_encoder)

    def __repr__(self) -> str:
        """Kind, shape, classes, and steps of a student."""
        named = ", ".join([*self.class_names[:3], *(["..."] if len(self.class_names) > 3 else [])])
        sampling = self.facts.sampling
        steps = sampling.num_steps if isinstance(sampling, StudentSampling) else None
        shown = {"shape": self.shape, "classes": named or None, "steps": steps}
        known = ", ".join(f"{name}={each}" for name, each in shown.items() if each)
        return f"Sampler({self.facts.kind}, {known})"

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, or their numbers; none of a network without classes."""
        data = self.facts.data
        if data is not None:
            return data.class_names or [str(each) for each in range(data.num_classes)]
        return [str(each) for each in range(num_known_classes(self.network))]

    def sample(
        self,
        labels: int | str | Sequence[int | str] | None = None,
        n: int | None = None,
        *,
        steps: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
        texts: str | Sequence[str] = (),
        batch_size: int = 100,
        **conditions: Tensor,
    ) -> list[Image.Image]:
        """Draw samples as pictures; the arguments are those of `sample_arrays`.

        Returns:
            One picture each: of the image's size, or of the tiles of data that are no images.
        """
        x0 = self.sample_arrays(
            labels,
            n,
            steps=steps,
            seed=seed,
            guidance=guidance,
            texts=texts,
            batch_size=batch_size,
            **conditions,
        )
        shown = self.to_pictures(x0)
        if shown.ndim != 4 or shown.shape[1] not in (1, 3):
            return [image_grid(each[None], 1) for each in shown]
        pixels = (shown.clamp(0, 1) * 255).round().byte().movedim(1, -1).numpy()
        return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in pixels]

    @torch.no_grad()
    def sample_arrays(
        self,
        labels: int | str | Sequence[int | str] | None = None,
        n: int | None = None,
        *,
        steps: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
        texts: str | Sequence[str] = (),
        batch_size: int = 100,
        **conditions: Tensor,
    ) -> "NDArray[np.float32]":
        """Draw samples as arrays, those of `scm predict` in its samples.npz.

        Args:
            labels: classes, by name or number, again and again up to `n`; None for all in turn.
            n: number of samples; None for one of each label, text or row of a condition, else 20.
            steps: number of steps, network calls of a student; None for what it was made for.
            seed: seed of the set of samples.
            guidance: scale of guidance; None for what the run sampled at.
            texts: texts to draw by, again and again, of a network that takes text.
            batch_size: samples that are drawn at once.
            conditions: further conditions as the network takes them, by name. (N, ...) each.

        Returns:
            Samples. (N, *shape), data units, float32.

        Raises:
            ValueError: if the network cannot be sampled so.
        """
        if (n is not None and n < 1) or batch_size < 1:
            raise ValueError(
                f"a number of samples must be at least 1, got n {n} and batch_size {batch_size}"
            )
        classes = labels_of(labels, self.class_names, bool(texts))
        given = [texts] if isinstance(texts, str) else list(texts)
        if n is None:
            asked_for = 0 if labels is None or classes is None else len(classes)
            n = max(asked_for, len(given), *map(len, conditions.values()), 0) or NUM_SAMPLES
        conditions |= encoded(given, self.facts.data, self.text_encoder)
        condition_names(self.network).check([*conditions])
        draw = self._draw(steps, guidance)
        whole = Conditions(
            None if classes is None else again(torch.tensor(classes), n),
            {name: again(x, n) for name, x in conditions.items()},
        )
        parts = []
        device = next(self.network.parameters()).device
        for start in range(0, n, batch_size):
            numbers = range(start, min(start + batch_size, n))
            generators = sample_generators(numbers, seed)
            noise = standard_normal((len(numbers), *self.shape), generators, device=device)
            part = rows_of(whole, numbers, device)
            parts.append(draw(self.facts.sigma_data * noise, part, generators).float().cpu())
        return cast("NDArray[np.float32]", torch.cat(parts).numpy())

    def to_pictures(self, x0: "NDArray[np.float32] | Tensor") -> Tensor:
        """Make samples visible.

        Args:
            x0: samples. (N, *shape), data units.

        Returns:
            Values in [0, 1]: images, decoded if the samples are latents whose autoencoder is at
            hand. (N, C, H, W), or as the data are.
        """
        given, data = torch.as_tensor(x0), self.facts.data
        if data is not None and data.latents is not None:
            try:
                return self._decoder.decode(data.data_to_arrays(given, self.facts.sigma_data))
            except ValueError as error:
                warn(f"the samples are shown as latents: {error}")
        elif data is not None and data.shows_pixels:
            return data.pixels_to_images(data.data_to_arrays(given, self.facts.sigma_data))
        return (0.5 + given / (4 * self.facts.sigma_data)).clamp(0, 1)

    @cached_property
    def _decoder(self) -> Autoencoder:
        import scm_lightning.torchvision_guard  # noqa: F401  diffusers imports torchvision

        assert self.facts.data is not None
        assert self.facts.data.latents is not None
        return Autoencoder.of(self.facts.data.latents, self.autoencoder)

    def _draw(self, steps: int | None, guidance: float | None) -> Draw:
        """The way to sample in a number of steps."""
        sampling = self.facts.sampling
        if isinstance(sampling, StudentSampling):
            number = sampling.num_steps[-1] if steps is None else steps
            if number < 1:
                raise ValueError(f"steps must be at least 1, got {number}; most students take 1, 2")
            check_num_steps(number)
            scale = sampling.scale(number)
            if guidance is not None:
                scale = self._checked_scale(sampling, guidance)
            times = sampling.times(number, self.path)
            return few_step_draw(self.network, sampling.steps, times, self.path, scale)
        assert isinstance(sampling, DiffusionSampling)
        chosen = sampling if steps is None else replace(sampling, num_steps=steps)
        chosen = chosen if guidance is None else replace(chosen, guidance=guidance)
        return chosen.draws(self.network, self.path)["teacher"]

    def _checked_scale(self, sampling: StudentSampling, guidance: float) -> float:
        """A scale that a student is asked for, if it takes any."""
        if sampling.guidance_range is None:
            raise ValueError(
                f"guidance needs a network that takes a scale, got {guidance:g} for one without; "
                "leave it out"
            )
        low, high = sampling.guidance_range
        if not low <= guidance <= high:
            warn(f"the network was trained at guidance from {low:g} to {high:g}, not {guidance:g}")
        return guidance
