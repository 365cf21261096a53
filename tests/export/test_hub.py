# SPDX-License-Identifier: Apache-2.0
"""Upload to the hub, against one of our own: what arrives, and what is said when it does not."""

import pytest
from export import fake_hub
from huggingface_hub import constants

from scm_lightning.export.hub import check_can_push, push


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    with fake_hub.running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        yield running


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "made"
    (made / "network").mkdir(parents=True)
    (made / "README.md").write_text("# A model\n")
    (made / "network" / "weights.safetensors").write_bytes(bytes(range(256)))
    return made


def test_a_folder_arrives_byte_for_byte(hub, folder):
    address = push(folder, "owner/model")
    assert address == f"{hub.address}/owner/model"
    assert hub.files == {
        ("owner/model", "README.md"): b"# A model\n",
        ("owner/model", "network/weights.safetensors"): bytes(range(256)),
    }
    assert {token for kind, token in hub.calls if kind != "get"} == {"Bearer hf_of_this_test"}


def test_a_repository_that_is_there_is_added_to_only_if_asked_for(hub, folder):
    hub.repositories.add("owner/model")
    with pytest.raises(ValueError, match=r"owner/model is there already; .*--overwrite") as refused:
        push(folder, "owner/model")
    assert "\n" not in str(refused.value)
    assert not hub.files
    push(folder, "owner/model", overwrite=True)
    assert len(hub.files) == 2


@pytest.mark.parametrize(
    ("route", "status", "said"),
    [
        ("create", 500, "could not be made: out of order; "),
        ("create", 403, "could not be made: no right to owner; "),
        ("preupload", 403, "could not be uploaded to .*, which is there now: read only; "),
        ("commit", 413, "could not be uploaded to .*: too large; .* hf upload owner/model"),
    ],
)
def test_a_refusal_is_one_line_with_the_words_of_the_server(hub, folder, route, status, said):
    words = said.partition(": ")[2].partition(";")[0]
    hub.refused[route] = (status, words)
    with pytest.raises(ValueError, match=said) as refused:
        push(folder, "owner/model")
    assert "\n" not in str(refused.value)
    assert not hub.files


def test_no_server_is_one_line(monkeypatch, folder):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # discard: nothing listens
    with pytest.raises(ValueError, match=r"could not be made: .*; .* is whole") as refused:
        push(folder, "owner/model")
    assert "\n" not in str(refused.value)


def test_what_cannot_be_uploaded_is_known_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="needs a token of the hub, and there is none"):
        check_can_push("owner/model")
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    check_can_push("owner/model")
    with pytest.raises(ValueError, match=r"must be a name on the hub, .*, got a/b/c"):
        check_can_push("a/b/c")
