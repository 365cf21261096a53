# SPDX-License-Identifier: Apache-2.0
r"""Pipeline of diffusers around a student of scm_lightning, in one, two or n steps.

    x    <- sigma_data n                                         at t_0 = atan(80 / sigma_data)
    x0   <- cos(t_k) x - sin(t_k) sigma_data F(x / sigma_data, t_k)
    x    <- cos(t_k+1) x0 + sin(t_k+1) sigma_data n'             and on, until t = 0

This file lies in every folder that `scm export --format diffusers` writes. It needs torch and
diffusers alone. Steps are those of diffusers' SCMScheduler, which does not keep its times: they are
in the folder's `model_index.json`.
Source: Lu and Song, arXiv 2410.11081, Section 4.
Axes: B batch; C, H, W of the data. Times in radians.
"""

import inspect
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
NO_CLASS = -1
IMAGES_AT_ONCE = 4
"""Latents that are decoded together."""


class SCMPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A student and the way it is sampled.

    Args:
        network: F, a model of diffusers or of scm_lightning.
        scheduler: diffusers' SCMScheduler, owner of `sigma_data`.
        vae: diffusers' AutoencoderKL, if the data are latents.
        id2label: names of the classes, by their numbers.
        sampling: `times`, by the number of steps, with the 0 where the last one leads; `steps`,
            `fresh_noise` by the scheduler or jumps without any, `trigonometric` or
            `average_velocity`; `guidance`, scales of a guided network in one step, in two, ...;
            `tells_end`, whether the network is told where a step leads. Of a model of diffusers
            `calls`, at each time what it is told, the factor of u in its input, and those of u and
            of F in its output; and `arguments`, its names of `sample`, `time` and `labels`, with
            the class for none, `null_class`; else null.
        data: `shape` of a sample; `num_classes`; per channel `mean` and `std` of the stored arrays;
            `max_value`, the pixel value that is white; `image_channels`.
    """

    model_cpu_offload_seq = "network->vae"
    _optional_components = ["vae"]  # noqa: RUF012  diffusers' own form

    def __init__(
        self,
        network: Any,
        scheduler: Any,
        vae: Any = None,
        id2label: dict[str, str] | None = None,
        sampling: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(network=network, scheduler=scheduler, vae=vae)
        self.register_to_config(id2label=id2label, sampling=sampling, data=data)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Read `model_index.json`; this class itself runs no other in its place from the folder."""
        config = super().load_config(*args, **kwargs)
        return {**config, "_class_name": cls.__name__} if isinstance(config, dict) else config

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Write the folder, with this file in it; see DiffusionPipeline.

        Args:
            save_directory: the folder.
            options: those of DiffusionPipeline.
        """
        super().save_pretrained(save_directory, **options)
        folder, library = Path(save_directory), self.config.network[0]
        source = Path(inspect.getfile(type(self))).read_text()
        if library != "diffusers" and f"import {library}\n" not in source:
            source = source.replace("import inspect\n", f"import inspect\nimport {library}\n", 1)
        (folder / "pipeline.py").write_text(source)
        index = folder / self.config_name
        content = json.loads(index.read_text()) | {"_class_name": ["pipeline", type(self).__name__]}
        index.write_text(json.dumps(content, indent=2) + "\n")

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Tensor | Sequence[int | str] | int | str | None = None,
        num_inference_steps: int = 1,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback: Callable[[int, float, Tensor], None] | None = None,
        callback_steps: int = 1,
    ) -> Any:
        """Draw samples.

        With a generator for each sample, a sample depends on its own alone. Sample number i of
        `scm predict` with the seed s, below 2^32, has

            torch.Generator().manual_seed(s * 2**31 + i)

        as `scm_lightning.core.sample_generators` makes them, and is the same here to 1e-5.

        Args:
            batch_size: number of samples B.
            class_labels: classes by number or name, one for all or B; -1 is no class. By default
                all classes in turn, as in `scm predict`.
            num_inference_steps: number of steps: one of those that the folder has times for.
            guidance_scale: scale that a guided network is given; by default that of its run.
            generator: source of all noise, or B of them.
            latents: noise of unit variance to start from, (B, C, H, W); drawn by default.
            output_type: `pil`; `np`, (B, H, W, C), or `pt`, (B, C, H, W), both in [0, 1]; or
                `latent`, (B, C, H, W) in data units: the arrays of `scm predict`.
            return_dict: whether the result is an ImagePipelineOutput; else a tuple.
            callback: called with the number of a step, its time in radians and the state that it
                leads to, (B, C, H, W) in data units.
            callback_steps: steps from one call to the next.

        Returns:
            The images, in an ImagePipelineOutput or a tuple.

        Raises:
            ValueError: if the network cannot be sampled as asked.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}")
        times = self._times(num_inference_steps)
        device, sigma_data = self._execution_device, self.scheduler.config.sigma_data
        labels = self._labels(class_labels, batch_size, device)
        scales = self._scales(guidance_scale, num_inference_steps, batch_size, device)
        x = sigma_data * self._noise(latents, batch_size, generator).to(device)
        with self.progress_bar(total=num_inference_steps) as bar:
            for k in range(num_inference_steps):
                F = self._F(x / sigma_data, times, k, labels, scales)
                x = self._step(sigma_data * F.float(), x, times, k, generator)
                bar.update()
                if callback is not None and k % callback_steps == 0:
                    callback(k, times[k], x)
        images = self._images(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _times(self, num_steps: int) -> list[float]:
        known = self.config.sampling["times"]
        if str(num_steps) not in known:
            raise ValueError(
                f"num_inference_steps must be one of {', '.join(known)}, for which the folder has "
                f"times, got {num_steps}"
            )
        times: list[float] = [*known[str(num_steps)]]
        if self.config.sampling["steps"] == "fresh_noise":
            self.scheduler.set_timesteps(
                num_steps,
                timesteps=times,
                max_timesteps=None,
                intermediate_timesteps=None,
                device=self._execution_device,
            )
            self.scheduler.set_begin_index(0)
        return times

    def _labels(self, given: Any, batch_size: int, device: torch.device) -> Tensor | None:
        num = self.config.data["num_classes"]
        if not num:
            if given is not None:
                raise ValueError(
                    f"class_labels must be None for a network of no classes, got {given}"
                )
            return None
        if given is None:
            return torch.arange(batch_size, device=device).remainder(num)
        numbers = {name: int(number) for number, name in (self.config.id2label or {}).items()}
        rows = given.tolist() if isinstance(given, Tensor) else given
        rows = [rows] * batch_size if isinstance(rows, int | str) else [*rows]
        if unknown := [row for row in rows if isinstance(row, str) and row not in numbers]:
            raise ValueError(f"class_labels must be of {', '.join(numbers)}, got {unknown[0]!r}")
        rows = [numbers[row] if isinstance(row, str) else row for row in rows]
        arguments = self.config.sampling["arguments"]
        least = NO_CLASS if arguments is None or arguments["null_class"] is not None else 0
        if len(rows) != batch_size or not all(
            isinstance(row, int) and least <= row < num for row in rows
        ):
            raise ValueError(
                f"class_labels must be {batch_size} numbers from {least} to {num - 1}, as many as "
                f"batch_size, got {rows}"
            )
        return torch.tensor(rows, device=device)

    def _scales(
        self, given: float | None, num_steps: int, batch_size: int, device: torch.device
    ) -> Tensor | None:
        own = self.config.sampling["guidance"]
        if own is None:
            if given is not None:
                raise ValueError(
                    f"guidance_scale must be None, since the network takes none, got {given}"
                )
            return None
        scale = own[min(num_steps, len(own)) - 1] if given is None else given
        if not math.isfinite(scale):
            raise ValueError(f"guidance_scale must be a finite number, got {scale}")
        return torch.full((batch_size,), float(scale), device=device)

    def _noise(self, latents: Tensor | None, batch_size: int, generator: Any) -> Tensor:
        shape = (batch_size, *self.config.data["shape"])
        if latents is not None:
            if latents.shape != shape:
                raise ValueError(f"latents must be {shape}, got {tuple(latents.shape)}")
            return latents.float()
        if not isinstance(generator, Sequence):
            device = None if generator is None else generator.device
            return torch.randn(shape, generator=generator, device=device)
        if len(generator) != batch_size:
            raise ValueError(
                f"generator must be one, or as many as batch_size, {batch_size}, got "
                f"{len(generator)}"
            )
        return torch.stack(
            [torch.randn(shape[1:], generator=each, device=each.device) for each in generator]
        )

    def _F(
        self,
        u: Tensor,
        times: Sequence[float],
        k: int,
        labels: Tensor | None,
        scales: Tensor | None,
    ) -> Tensor:
        """F at time k. (B, C, H, W), unit variance."""
        arguments, u = self.config.sampling["arguments"], u.to(self.network.dtype)
        if arguments is None:
            t = u.new_full(u.shape[:1], times[k], dtype=torch.float32)
            end = 0.0 if self.config.sampling["steps"] == "fresh_noise" else times[k + 1]
            ends = (torch.full_like(t, end),) if self.config.sampling["tells_end"] else ()
            F: Tensor = self.network(u, t, labels, scales, *ends)
            return F
        told, scale, of_u, of_F = self.config.sampling["calls"][str(len(times) - 1)][k]
        given = {
            arguments["sample"]: scale * u,
            arguments["time"]: u.new_full(u.shape[:1], told, dtype=torch.float32),
        }
        if labels is not None:
            none = arguments["null_class"]
            given[arguments["labels"]] = labels.where(labels != NO_CLASS, none or 0)
        out: Tensor = self.network(**given, return_dict=False)[0]
        out = out[:, : u.shape[1]]  # behind it there may be a variance
        return torch.div(out - of_u * (scale * u / scale), of_F)

    def _step(
        self, velocity: Tensor, x: Tensor, times: Sequence[float], k: int, generator: Any
    ) -> Tensor:
        """The state at time k + 1. (B, C, H, W), data units."""
        if self.config.sampling["steps"] == "fresh_noise":
            moved: Tensor = self.scheduler.step(
                velocity, times[k], x, generator=generator, return_dict=False
            )[0]
            return moved
        angle = times[k] - times[k + 1]
        if self.config.sampling["steps"] == "trigonometric":
            return math.cos(angle) * x - math.sin(angle) * velocity
        return x - angle * velocity

    def _images(self, x: Tensor, output_type: str) -> Any:
        """Images of data."""
        if output_type == "latent":
            return x
        data, axes = self.config.data, (2, -1, *[1] * (x.ndim - 2))
        mean, std = x.new_tensor([data["mean"], data["std"]]).reshape(axes)
        x = x * (std / self.scheduler.config.sigma_data) + mean
        if self.vae is None:
            images = (x / data["max_value"]).clamp(0, 1)
        else:
            chunks = torch.split(x.to(self.vae.dtype), IMAGES_AT_ONCE)
            decoded = torch.cat([self.vae.decode(each).sample for each in chunks]).float()
            if decoded.shape[1] != data["image_channels"]:
                decoded = decoded.mean(dim=1, keepdim=True)
            images = (0.5 * decoded + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"output_type must be 'pt' or 'latent' for data that are no gray or color images, "
                f"of shape {data['shape']}, got {output_type!r}"
            )
        arrays = images.cpu().permute(0, 2, 3, 1).numpy()
        return arrays if output_type == "np" else self.numpy_to_pil(arrays)
