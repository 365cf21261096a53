# SPDX-License-Identifier: Apache-2.0
"""Folders and repositories of diffusers: where files are found, and what is refused in one line."""

import json
import shutil

import diffusers
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from teachers.sources_diffusers import KINDS, SHAPE, write_diffusers

from scm_lightning.teachers import DiffusersTeacher
from scm_lightning.teachers.diffusers_folder import DiffusersFolder, _licence

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers gives many
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
HTML = "<!DOCTYPE html>\n<html><body>404</body></html>"


@pytest.fixture(scope="module")
def pipeline(once):
    return once("pipeline", lambda folder: write_diffusers(folder, "flow", steps=0))


@pytest.fixture
def copied(pipeline, tmp_path):
    return shutil.copytree(pipeline, tmp_path / "pipe")


def at(teacher):
    generator = torch.Generator().manual_seed(0)
    u, t = torch.randn(4, *SHAPE, generator=generator), torch.tensor([0.1, 0.5, 1.0, 1.5])
    return teacher(u, t, None, **KINDS["flow"].given(4))


@torch.no_grad()
def test_a_pipeline_a_model_and_a_root_with_everything_are_the_same_teacher(pipeline, copied):
    expected = at(DiffusersTeacher(str(pipeline)))
    for path, options in [
        (pipeline, {"subfolder": "transformer"}),
        (pipeline / "transformer", {}),
    ]:
        torch.testing.assert_close(at(DiffusersTeacher(str(path), **options)), expected)
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):  # as the oldest have it
        shutil.move(copied / "transformer" / file, copied / file)
    shutil.move(copied / SCHEDULER, copied / "scheduler_config.json")
    torch.testing.assert_close(at(DiffusersTeacher(str(copied))), expected)
    (copied / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match=r"there must be scheduler_config.json, .* give the pip"):
        DiffusersTeacher(str(copied))
    flow = DiffusersTeacher(str(copied), prediction="flow_prediction")
    torch.testing.assert_close(at(flow), expected)
    with pytest.raises(ValueError, match="predicts epsilon must have a scheduler with a table"):
        DiffusersTeacher(str(copied), prediction="epsilon")


@torch.no_grad()
def test_shards_and_variants_are_read_and_their_types_said(pipeline, tmp_path):
    expected = at(DiffusersTeacher(str(pipeline)))
    sharded = write_diffusers(tmp_path / "shards", "flow", steps=0, max_shard_size="20KB")
    assert len(list(sharded.glob("transformer/*.safetensors"))) > 1
    torch.testing.assert_close(at(DiffusersTeacher(str(sharded))), expected)
    half = shutil.copytree(pipeline, tmp_path / "half")
    weights = {name: x.half() for name, x in load_file(half / WEIGHTS).items()}
    save_file(weights, half / WEIGHTS.replace(".safe", ".fp16.safe"))
    (half / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"model.fp16.safetensors: set variant to what stands in"):
        DiffusersTeacher(str(half))
    teacher = DiffusersTeacher(str(half), variant="fp16")
    assert "stored as F16" in teacher.source
    torch.testing.assert_close(at(teacher), expected, rtol=0, atol=0.02)


@torch.no_grad()
def test_a_name_on_the_hub_is_found_in_the_cache_without_a_network(pipeline, tmp_path, monkeypatch):
    """Its cache is written out: refs/main names the snapshot, which holds the files."""
    repository = tmp_path / "hub" / "models--somebody--their-pipe"
    shutil.copytree(pipeline, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    teacher = DiffusersTeacher("somebody/their-pipe")
    torch.testing.assert_close(at(teacher), at(DiffusersTeacher(str(pipeline))))
    with pytest.raises(ValueError, match=r"somebody/else must be a folder .* the hub, which"):
        DiffusersTeacher("somebody/else")
    shutil.copytree(pipeline, tmp_path / "somebody" / "else")  # a folder here comes first
    assert DiffusersFolder("somebody/else").model.parent.parent.name == "somebody"


def test_of_a_repository_only_what_is_needed_is_fetched(pipeline, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.extend(allow_patterns)
        return str(pipeline)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    DiffusersTeacher("somebody/their-pipe")
    weights = [name for name in asked if name.endswith((".safetensors", ".bin"))]
    assert weights == [WEIGHTS]
    assert all("*" not in name for name in asked)


def changed(file, **entries):
    def change(folder):
        config = json.loads((folder / file).read_text()) | entries
        (folder / file).write_text(json.dumps(config))

    return change


def written(file, text):
    return lambda folder: (folder / file).write_text(text)


def truncated(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def pickled(folder):
    (folder / WEIGHTS).rename(folder / WEIGHTS.replace("safetensors", "bin"))


def without_a_weight(folder):
    weights = load_file(folder / WEIGHTS)
    weights.pop("proj_out.bias")
    save_file(weights, folder / WEIGHTS)


def with_another_weight(folder):
    weights = load_file(folder / WEIGHTS) | {"nobodys.weight": torch.zeros(2)}
    save_file(weights, folder / WEIGHTS)


def indexed(name):
    def change(folder):
        index = {"metadata": {}, "weight_map": {"proj_out.bias": name}}
        place = folder / "transformer/diffusion_pytorch_model.safetensors.index.json"
        place.write_text(json.dumps(index))

    return change


def removed(file):
    return lambda folder: (folder / file).unlink()


CONFIG = "transformer/config.json"
DAMAGE = {
    "no config": (removed(CONFIG), "must hold config.json, which is missing; give the folder"),
    "HTML": (written(CONFIG, HTML), "config.json must be the file itself, got a page of HTML"),
    "a pointer": (written(CONFIG, LFS), "config.json must be the file itself, got a Git-LFS point"),
    "no JSON": (written(CONFIG, "{'a': 1}"), "config.json must be JSON: Expecting property name"),
    "a list": (written(CONFIG, "[1]"), "config.json must hold a dictionary, got list"),
    "nested": (written(CONFIG, "[" * 100000), "config.json must be JSON"),
    "class": (
        changed(CONFIG, _class_name="SanaTransformer2DMode"),
        "got SanaTransformer2DMode; did you mean SanaTransformer2DModel",
    ),
    "code": (changed(CONFIG, _class_name="os.system"), "must be one of UNet2DModel.*got os.system"),
    "width": (changed(CONFIG, caption_channels=13), "cannot be loaded as SanaTransformer2DModel"),
    "nonsense": (changed(CONFIG, num_layers="many"), "cannot be loaded as SanaTransformer2DModel"),
    "no weights": (removed(WEIGHTS), "have its weights in diffusion_pytorch_model.safetensors, wh"),
    "a pickle": (pickled, "model.bin is a pickle, which is not opened: load it where you trust"),
    "half": (truncated, "model.safetensors must be whole safetensors: .* download it again"),
    "empty": (written(WEIGHTS, ""), "model.safetensors must be whole safetensors"),
    "weights' pointer": (written(WEIGHTS, LFS), "got a Git-LFS pointer; run `git lfs pull`"),
    "weights' page": (written(WEIGHTS, HTML), "must be the file itself, got a page of HTML"),
    "too few": (without_a_weight, "lack 1 of them, first proj_out.bias; save it again"),
    "too many": (with_another_weight, "have 1 others, first nobodys.weight; save it again"),
    "a shard elsewhere": (indexed("../../x.safetensors"), "must name safetensors beside it, got"),
    "a shard of pickle": (indexed("shard.bin"), "must name safetensors beside it, got 'shard.bin'"),
    "a missing shard": (indexed("shard.safetensors"), "its weights in shard.safetensors, which is"),
    "scheduler": (
        changed(SCHEDULER, _class_name="KarrasVeScheduler"),
        "the scheduler must be one of DDPM's process .* got KarrasVeScheduler",
    ),
    "scheduler's code": (changed(SCHEDULER, _class_name="os.system"), "got os.system; save the"),
    "prediction": (
        changed(SCHEDULER, _class_name="DDIMScheduler", prediction_type="velocity"),
        "prediction must be one of epsilon, sample, .*, got velocity; set prediction",
    ),
    "schedule": (
        changed(SCHEDULER, _class_name="DDIMScheduler", beta_schedule="mine"),
        "the scheduler DDIMScheduler cannot be built: mine",
    ),
    "table": (
        changed(SCHEDULER, _class_name="DDIMScheduler", trained_betas=[0.5, -0.5]),
        "alphas_bar must be two or more numbers that fall",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_refused_in_one_line(copied, name):
    damage, message = DAMAGE[name]
    damage(copied)
    with pytest.raises(ValueError, match=message) as refused:
        DiffusersTeacher(str(copied))
    assert "\n" not in str(refused.value)


def test_no_folder_is_refused_with_the_one_that_was_meant(pipeline):
    with pytest.raises(ValueError, match=r"there is no such folder; did you mean .*transformer\?"):
        DiffusersTeacher(str(pipeline / "transformers"))


def test_a_text_of_another_width_and_a_model_of_other_channels_are_refused(pipeline, tmp_path):
    teacher = DiffusersTeacher(str(pipeline))
    u, t = torch.zeros(2, *SHAPE), torch.ones(2)
    with pytest.raises(ValueError, match="takes texts of 12 features, got 13"):
        teacher(u, t, None, text=torch.zeros(2, 5, 13))
    with pytest.raises(ValueError, match="needs the condition text, which the data do not have"):
        teacher(u, t)
    inpainting = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=5,
        out_channels=2,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    inpainting.save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="F must have the shape of u"):
        DiffusersTeacher(str(tmp_path))


def test_an_old_attentions_names_are_read(tmp_path):
    """Files of 2022 call the layers of attention query, key, value and proj_attn."""
    write_diffusers(tmp_path, "epsilon", steps=0)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    expected = load_file(file)
    names = {
        ".to_q.": ".query.",
        ".to_k.": ".key.",
        ".to_v.": ".value.",
        ".to_out.0.": ".proj_attn.",
    }
    old = {}
    for name, weight in expected.items():
        for new, before in names.items():
            name = name.replace(new, before)
        old[name] = weight
    assert set(old) != set(expected)
    save_file(old, file)
    found = DiffusersTeacher(str(tmp_path)).network.network.model.state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("license: mit", "mit"),
        ("license:\n- cc-by-nc-4.0\n- mit", "cc-by-nc-4.0 and mit"),
        ("license:\ntags:\n- a", None),
        ('license: other\nlicense_name: "CC BY-NC-SA 4.0"', "CC BY-NC-SA 4.0"),
        ("license: [", None),
    ],
)
def test_the_licence_is_that_of_the_cards_head(head, licence, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\n# A model\nlicense: gpl\n")
    assert _licence([tmp_path / "missing.md", tmp_path / "README.md"]) == licence
