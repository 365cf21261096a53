# SPDX-License-Identifier: Apache-2.0
"""What an option takes as text is never read as a file; what takes objects alone, still is."""

from typing import Literal

import pytest
from torch import nn

from scm_lightning.autodiff import FiniteDifference, TangentComputer, TwoPasses
from scm_lightning.cli.app import OneLineParser
from scm_lightning.networks import MLP

SPEC = "class_path: scm_lightning.networks.MLP\ninit_args: {data_shape: [3], model_channels: 4}\n"
FILES = {"spec.ckpt": SPEC, "none": "", "list": "[spec.ckpt]"}


class Takes:
    """Options of the kinds that Lightning and the modules have.

    Args:
        only: an object.
        text: or an object, or nothing.
        texts: or an object.
        word: one of few, or an object.
    """

    def __init__(
        self,
        only: nn.Module,
        text: str | nn.Module | None = None,
        texts: nn.Module | list[str | nn.Module] | None = None,
        word: Literal["spec.ckpt", "none", "list"] | nn.Module = "none",
    ) -> None:
        self.only, self.text, self.texts, self.word = only, text, texts, word


class Holds:
    """Another object with these options."""

    def __init__(self, inner: Takes) -> None:
        self.inner = inner


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Options of a group and of a subclass, in a folder with files of the names that are given."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    parser = OneLineParser(exit_on_error=False)
    parser.add_class_arguments(Takes, "group", sub_configs=True)  # as Lightning adds the trainer
    parser.add_subclass_arguments(Holds, "holds")

    def parse(*options):
        inner = f"--holds.inner={__name__}.Takes"
        given = [f"--{at}.{each}" for at in ("group", "holds.inner") for each in options]
        found = parser.parse_args([f"--holds={__name__}.Holds", inner, *given])
        built = parser.instantiate_classes(found)
        return built.group, built.holds.inner

    return parse


@pytest.mark.parametrize("name", FILES)
def test_a_text_that_names_a_file_is_that_text(name, parse):
    for each in parse("only=spec.ckpt", f"text={name}", f"word={name}"):
        assert each.text == each.word == name


def test_an_object_may_be_in_a_file(parse):
    """Lightning's own way of giving a part of a configuration."""
    for each in parse("only=spec.ckpt"):
        assert isinstance(each.only, MLP)


def test_a_list_of_texts_is_in_no_file(parse):
    with pytest.raises(ValueError, match="texts"):
        parse("only=spec.ckpt", "texts=list")
    for each in parse("only=spec.ckpt", "texts=[spec.ckpt]"):
        assert each.texts == ["spec.ckpt"]


def test_a_tangent_method_is_a_short_name_or_an_object():
    parser = OneLineParser(exit_on_error=False)
    parser.add_argument("--tangents", type=TangentComputer)

    def method(*options):
        return parser.instantiate_classes(parser.parse_args(options)).tangents.method

    assert method('--tangents={"method": "two_pass", "check": true}') == TwoPasses()
    path = "scm_lightning.autodiff.FiniteDifference"
    given = f'{{"method": {{"class_path": "{path}", "init_args": {{"h": 1.0e-3}}}}}}'
    assert method(f"--tangents={given}") == FiniteDifference(1e-3)
    assert method("--tangents.method=FiniteDifference", "--tangents.method.h=1e-3").h == 1e-3
