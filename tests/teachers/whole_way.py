# SPDX-License-Identifier: Apache-2.0
"""One model all the way: trained here, written as EDM2 publishes, distilled, used elsewhere.

    python tests/teachers/whole_way.py FOLDER SHARDS [TEACHER_STEPS STUDENT_STEPS]

1. A U-Net of EDM2's architecture is trained on the shards of Fashion-MNIST at 16x16 pixels, and
   written as EDM2's pickle.
2. `EDM2Teacher` reads that, and teaches a student by `scm fit`.
3. The student is exported as a file and as a folder of diffusers, and sampled by either in a fresh
   process.
4. The student is written as edm2_sCM's pickle, of which `scm convert` makes a run.

The largest difference of each from `scm predict` is printed. An hour and a quarter of a CPU core.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# isort: off
import scm_lightning.torchvision_guard  # noqa: F401  before lightning

# isort: on
import torch
import yaml

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests")]

from teachers.published import write_published  # noqa: E402

from scm_lightning.networks import EDM2UNet, TimeEmbedding  # noqa: E402
from scm_lightning.storage import SavedRun  # noqa: E402
from scm_lightning.teachers import EDM2Teacher  # noqa: E402

SIZES = {"data_shape": [1, 16, 16], "model_channels": 32, "channel_mult": [1, 2], "num_blocks": 2}
SIZES |= {"attention_pixels": [8], "num_classes": 10, "exact_norm": True}
OF_TEACHER = {"modulation": "gain"}
LOG_TIME = {"transform": "log", "features": "mp_fourier", "sigma_data": 0.5}
OF_STUDENT = {"modulation": "unscaled"}
FRESH = """
import scm_lightning.torchvision_guard, json, sys
import numpy as np, torch, scm_lightning
from diffusers import DiffusionPipeline
wanted = np.load(sys.argv[1])
sampler = scm_lightning.load("student.safetensors")
pipe = DiffusionPipeline.from_pretrained("pipeline", trust_remote_code=True)
found = {}
for steps in (1, 2):
    real = wanted[f"{steps}_step"]
    of_file = sampler.sample_arrays(n=len(real), steps=steps)
    noise = [torch.Generator().manual_seed(number) for number in range(len(real))]
    labels = [number % 10 for number in range(len(real))]
    drawn = pipe(len(real), labels, steps, generator=noise, output_type="latent").images
    for name, each in (("file", of_file), ("pipeline", np.asarray(drawn))):
        found[f"{name}, {steps} steps"] = float(np.abs(each - real).max())
print(json.dumps(found))
"""


def module(kind: str, name: str, network: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Part of a configuration."""
    network = {"class_path": "scm_lightning.networks.EDM2UNet", "init_args": {**SIZES, **network}}
    return {
        "class_path": f"scm_lightning.modules.{kind}",
        "init_args": {name: network, "ema": half_life(), **options},
    }


def half_life() -> dict[str, Any]:
    return {"class_path": "scm_lightning.modules.HalfLife", "init_args": {"images": 8800}}


def flat_cosine(ramp: float) -> dict[str, Any]:
    lengths = {"total_steps": None, "ramp_steps": ramp}
    return {"class_path": "scm_lightning.modules.FlatCosine", "init_args": lengths}


def scm(folder: Path, *words: str) -> None:
    """Run a command in the folder."""
    subprocess.run([sys.executable, "-m", "scm_lightning", *words], cwd=folder, check=True)


def fit(folder: Path, name: str, model: dict[str, Any], shards: str, steps: int) -> None:
    """Train a run, in the folder `name`."""
    config = {
        "seed_everything": 0,
        "model": model,
        "data": {
            "class_path": "scm_lightning.data.Shards",
            "init_args": {"root": shards, "batch_size": 64, "num_test_samples": 4000},
        },
        "metrics": {"features": {"class_path": "scm_lightning.metrics.FashionFeatures"}},
        "trainer": {"default_root_dir": name, "accelerator": "cpu", "max_steps": steps}
        | {"val_check_interval": steps, "num_sanity_val_steps": 0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    scm(folder, "fit", "--config", f"{name}.yaml")


def average(folder: Path, name: str, **options: Any) -> tuple[EDM2UNet, dict[str, torch.Tensor]]:
    """Averaged network of a run, and its weights."""
    weights = dict(SavedRun.read(folder / name / "checkpoints" / "last.ckpt").average().tensors)
    net = EDM2UNet(**SIZES, **options)
    net.load_state_dict(weights)
    return net.eval(), weights


@torch.no_grad()
def main() -> None:
    """Go the way."""
    folder, shards = Path(sys.argv[1]), str(Path(sys.argv[2]).resolve())
    steps = [int(word) for word in sys.argv[3:]] or [3000, 1400]
    folder.mkdir(parents=True, exist_ok=True)
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-2, "betas": [0.9, 0.99]}}
    rates = {"times": {"P_mean": -0.8, "P_std": 1.4}, "optimizer": adam}
    rates |= {"lr_schedule": flat_cosine(0.0333), "sampling": {"num_steps": 16}}
    of_teacher = {**OF_TEACHER, "time_embedding": LOG_TIME}
    fit(
        folder,
        "teacher",
        module("DiffusionModule", "network", of_teacher, **rates),
        shards,
        steps[0],
    )
    net, weights = average(
        folder, "teacher", **OF_TEACHER, time_embedding=TimeEmbedding(**LOG_TIME)
    )
    pickled = folder / f"edm2-fashion16-{steps[0] * 64 // 1000:07d}-0.050.pkl"
    write_published(pickled, net, weights, 0.5)
    u, t = torch.randn(10, 1, 16, 16), torch.linspace(0.004, 1.5645, 10)
    found = EDM2Teacher(str(pickled))(u, t, torch.arange(10)) - net(u, t, torch.arange(10))
    differences = {"F of the teacher's pickle": float(found.abs().max())}

    objective = {"class_path": "scm_lightning.objectives.Consistency"}
    objective["init_args"] = {"times": {"P_mean": -1.2, "P_std": 1.8}, "weighting_lr": 1e-2}
    objective["init_args"]["warmup"] = {"steps": None}
    radam = {"class_path": "torch.optim.RAdam", "init_args": {"lr": 3e-3, "betas": [0.9, 0.99]}}
    options = {"objective": objective, "optimizer": radam, "lr_schedule": flat_cosine(0.042)}
    options |= {"velocity": {"class_path": "scm_lightning.objectives.TeacherVelocity"}}
    options |= {"teacher": {"class_path": "EDM2Teacher", "init_args": {"path": pickled.name}}}
    options |= {"sampling": {"teacher": {"num_steps": 16}}}
    student = module("ConsistencyModule", "student", OF_STUDENT, **options)
    fit(folder, "student", student, shards, steps[1])
    scm(folder, "predict", "--config", "student.yaml")
    scm(folder, "export", "--checkpoint", "student", "--out", "student.safetensors")
    scm(folder, "export", "--checkpoint", "student", "--format", "diffusers", "--out", "pipeline")
    samples = "student/samples/samples.npz"
    fresh = [sys.executable, "-c", FRESH, samples]
    said = subprocess.run(fresh, cwd=folder, check=True, capture_output=True, text=True).stdout
    differences |= json.loads(said.splitlines()[-1])

    net, weights = average(folder, "student", **OF_STUDENT)
    write_published(folder / "student.pkl", net, weights, 0.5, "TrigFlowSCMLoss")
    scm(folder, "convert", "--source", "student.pkl", "--out", "converted", "--data", shards)
    scm(folder, "predict", "--config", "converted/config.yaml")
    with_both = [_arrays(folder / each) for each in (samples, "converted/samples/samples.npz")]
    for name in ("1_step", "2_step"):
        first, second = (each[name] for each in with_both)
        differences[f"edm2_sCM's pickle, {name}"] = float(abs(first - second).max())
    print(json.dumps(differences, indent=1), flush=True)
    scm(folder, "test", "--config", "student.yaml")


def _arrays(file: Path) -> Any:
    import numpy as np

    return np.load(file)


if __name__ == "__main__":
    main()
