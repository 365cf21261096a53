# SPDX-License-Identifier: Apache-2.0
"""Exported weights as files: what is written is what is read, and damage is found."""

import json
import os
import struct
from dataclasses import astuple, replace

import pytest
import torch
from gaussian import PATH
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from scm_lightning import __version__
from scm_lightning.storage import Export

WHAT = ("diffusion", PATH.sigma_data / 3, 12, "ema", "0.05")


@pytest.fixture
def weights():
    torch.manual_seed(0)
    tied = torch.randn(5, 3)
    return {
        "a.weight": tied,
        "b.weight": tied,
        "transposed": torch.randn(2, 7).T,
        "half": torch.randn(4).bfloat16(),
        "count": torch.tensor(9),
        "none": torch.zeros(0, 3),
    }


def test_what_is_written_is_read(weights, tmp_path):
    """By us with what it is of, to the last digit, and by the plain library."""
    file = tmp_path / "new" / "a.safetensors"
    Export(*WHAT, weights).write(file)
    found = Export.read(file)
    assert astuple(replace(found, tensors={}))[:5] == WHAT
    for loaded in (found.tensors, load_file(file)):
        assert loaded.keys() == weights.keys()
        for name, weight in weights.items():
            assert loaded[name].dtype == weight.dtype
            assert torch.equal(loaded[name], weight)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert (metadata["format"], metadata["scm_version"]) == ("pt", __version__)
    assert list(file.parent.iterdir()) == [file]


def test_tied_weights_load_into_their_network(tmp_path):
    torch.manual_seed(0)
    network, other = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    for each in (network, other):
        each[1].weight = each[0].weight
    Export(*WHAT, network.state_dict()).write(tmp_path / "a.safetensors")
    other.load_state_dict(load_file(tmp_path / "a.safetensors"))
    x = torch.randn(4, 3)
    assert torch.equal(network(x), other(x))


def refused(file, match):
    with pytest.raises(ValueError, match=match) as caught:
        Export.read(file)
    assert "\n" not in str(caught.value)


def test_every_flipped_bit_of_a_weight_is_found(weights, tmp_path):
    file = tmp_path / "a.safetensors"
    Export(*WHAT, weights).write(file)
    whole = file.read_bytes()
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    for place in range(start, len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        refused(file, "damaged: its weights or entries do not fit")
    file.write_bytes(whole[:-5])
    refused(file, "is not a safetensors file, or is damaged")


def test_other_files_are_refused(weights, tmp_path):
    file = tmp_path / "a.safetensors"
    refused(file, "there is no file")
    file.write_text("hello")
    refused(file, "is not a safetensors file, or is damaged")
    save_file({"weight": torch.ones(2)}, file)
    refused(file, "must be an export of format 2, its metadata name none; give a file that `scm")
    save_file({"weight": torch.ones(2)}, file, {"scm_format_version": "3"})
    refused(file, "its metadata name 3; .* install a newer scm_lightning")
    Export(*WHAT, weights).write(file)
    header = file.read_bytes()
    length = struct.unpack("<Q", header[:8])[0]
    listing = json.loads(header[8 : 8 + length])
    del listing["__metadata__"]["scm_sigma_data"]
    shorter = json.dumps(listing).encode()
    file.write_bytes(struct.pack("<Q", len(shorter)) + shorter + header[8 + length :])
    refused(file, "the metadata of .* are damaged: 'sigma_data'; export it again")


def test_every_flipped_bit_of_what_it_is_of_is_found(weights, tmp_path):
    """The values of our entries: of the kind of run, sigma_data, step and the others."""
    file = tmp_path / "a.safetensors"
    Export(*WHAT, weights).write(file)
    whole = file.read_bytes()
    for value in (b"diffusion", repr(WHAT[1]).encode(), b'"12"', b'"ema"', b"0.05"):
        start = whole.index(value)
        for place in range(start, start + len(value)):
            changed = bytearray(whole)
            changed[place] ^= 1
            file.write_bytes(changed)
            with pytest.raises(ValueError, match=r"damaged"):
                Export.read(file)


def test_an_export_without_a_checksum_of_its_entries_is_read(weights, tmp_path):
    """As version 0.3.0 wrote them; of a newer format it is damage."""
    file = tmp_path / "a.safetensors"
    Export(*WHAT, weights).write(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    del metadata["scm_entries_sha256"]
    save_file(load_file(file), file, metadata)
    refused(file, "do not fit their checksums")
    save_file(load_file(file), file, metadata | {"scm_format_version": "1"})
    assert Export.read(file).step == 12


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n",
            "git lfs pull",
        ),
        (b"\n<!DOCTYPE html><html>", "got an HTML page; download the file itself"),
    ],
)
def test_what_a_download_leaves_in_the_place_of_a_file_is_named(content, advice, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    refused(tmp_path / "a.safetensors", advice)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_can_be_read_by_whom_the_umask_says(umask, weights, tmp_path):
    """The library's own are for their owner alone."""
    before = os.umask(umask)
    try:
        Export(*WHAT, weights).write(tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_further_entries_come_back_and_are_covered(weights, tmp_path):
    file = tmp_path / "a.safetensors"
    entries = {"licence": "CC BY-NC-SA 4.0", "network": '{"class_path": "MLP"}'}
    Export(*WHAT, weights, entries).write(file)
    assert Export.read(file).entries == entries
    changed = file.read_bytes().replace(b"NC-SA", b"NC-ND")
    file.write_bytes(changed)
    refused(file, "do not fit their checksums")
