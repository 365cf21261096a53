# SPDX-License-Identifier: Apache-2.0
"""Private names of torch, Lightning, jsonargparse, diffusers: which, where, and what for."""

import inspect
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten
ERRORS = "errors of options are the parser's own, over many lines"


class Use(NamedTuple):
    """Private names: files that use them, what breaks without, and whether they are there."""

    files: str
    breaks: str
    is_there: object


def takes(function, *names):
    """Whether a function has just these parameters."""
    return lambda: list(inspect.signature(function).parameters) == list(names)


def loop(name):
    return lambda: hasattr(Trainer(logger=False, accelerator="cpu").fit_loop.epoch_loop, name)


def counted_version():
    x = torch.zeros(2)
    before = x._version
    return x.add_(1)._version == before + 1


def averaged():
    x = [torch.zeros(2)]
    torch._foreach_lerp_(x, [torch.ones(2)], 0.25)
    return x[0].tolist() == [0.25, 0.25]


def forward_mode_levels():
    with forward_ad.dual_level():
        return forward_ad._current_level == 0


def attended(name, *outputs):
    """Whether an operator of fused attention has outputs of these names first."""
    found = [each.name for each in getattr(aten, name).default._schema.returns]
    return found[: len(outputs)] == list(outputs)


def functorch_names():
    from torch._C._functorch import TransformType
    from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

    seen = []

    def look(x):
        seen.extend(each.key() for each in retrieve_all_functorch_interpreters())
        return x

    torch.func.jvp(look, (torch.ones(2),), (torch.ones(2),))
    return seen == [TransformType.Jvp]


def functions_are_seen():
    from torch.autograd.function import _SingleLevelFunction

    return issubclass(torch.autograd.Function, _SingleLevelFunction)


def fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode, is_fake

    with FakeTensorMode(allow_non_fake_inputs=True):
        return is_fake(torch.zeros(2))


def types_are_checked():
    from jsonargparse._typehints import ActionTypeHint
    from jsonargparse._util import NestedArg

    parameters = list(inspect.signature(ActionTypeHint._check_type).parameters)
    return parameters[:2] == ["self", "value"] and NestedArg("key", 1).val == 1


def options_are_known():
    from jsonargparse._typehints import ActionTypeHint

    parser = ArgumentParser()
    parser.add_argument("--teacher", type=str | dict)
    action = next(each for each in parser._actions if each.dest == "teacher")
    return isinstance(action, ActionTypeHint) and hasattr(action, "_enable_path")


def nothing_outside_of_transforms():
    with torch._C._DisableFuncTorch():
        return not torch._C._are_functorch_transforms_active()


def seen_dispatch():
    from torch.utils._python_dispatch import TorchDispatchMode

    return callable(TorchDispatchMode.__torch_dispatch__)


def mapped_trees():
    from torch.utils import _pytree

    names = ("tree_map_only", "tree_map_with_path")
    return all(callable(getattr(_pytree, each)) for each in names)


def compiler_errors():
    from torch._dynamo.exc import TorchDynamoException

    return issubclass(TorchDynamoException, RuntimeError)


def mode_is_seen():
    with TorchFunctionMode():
        return torch._C._is_torch_function_mode_enabled()


def has(owner, *names):
    return lambda: all(hasattr(owner, each) for each in names)


ATTENTION = "fused attention has no derivative, or the bench counts none of its FLOPs"
DUAL = "autodiff/dual/"
USES = {
    "_batches_that_stepped": Use(
        "callbacks/bad_numbers.py",
        "after a step that is left out, rows of metrics.csv have the wrong step",
        loop("_batches_that_stepped"),
    ),
    "_should_accumulate": Use(
        "callbacks/checkpoints.py",
        "a checkpoint is written between two steps, without the gradients that wait",
        loop("_should_accumulate"),
    ),
    "_broadcast_sigterm_tensor": Use(
        "callbacks/stop_signals.py",
        "every batch of several processes waits for one more collective",
        loop("_broadcast_sigterm_tensor"),
    ),
    "_signal_connector": Use(
        "callbacks/stop_signals.py",
        "SIGTERM to one of several processes hangs the run, and to the first saves nothing",
        lambda: takes(
            Trainer(logger=False, accelerator="cpu")._signal_connector.register_signal_handlers
        )(),
    ),
    "_check_log_dir_exists": Use(
        "callbacks/run_log.py",
        "metrics.csv of a run that goes on is removed",
        takes(ExperimentWriter._check_log_dir_exists, "self"),
    ),
    "_experiment": Use(
        "callbacks/run_log.py",
        "metrics.csv is written by Lightning's own writer, which forgets the earlier rows",
        lambda: CSVLogger(".")._experiment is None,
    ),
    "_get_train_description": Use(
        "callbacks/progress.py",
        "the progress bar names an epoch that says nothing",
        takes(RichProgressBar._get_train_description, "self", "current_epoch"),
    ),
    "_data_parallel_size": Use(
        "modules/fsdp2.py",
        "fsdp2 shards over one machine only",
        has(ModelParallelStrategy(), "_data_parallel_size"),
    ),
    "_trainer": Use(
        "modules/base.py",
        "a module cannot be called outside of a run",
        lambda: LightningModule()._trainer is None,
    ),
    "_device": Use(
        "bench/dry_run.py",
        "scm bench --dry-run fails on a machine with a GPU",
        has(LightningModule(), "_device"),
    ),
    "_get": Use(
        "cli/app.py",
        "no command starts",
        takes(LightningCLI._get, "self", "config", "key", "default"),
    ),
    "_parser": Use(
        "cli/app.py", "no command starts", takes(LightningCLI._parser, "self", "subcommand")
    ),
    "_parse_ckpt_path": Use(
        "cli/app.py",
        "options that a checkpoint holds win over those that are typed",
        takes(LightningCLI._parse_ckpt_path, "self"),
    ),
    "_actions": Use("cli/parsers.py", "no near name is proposed", options_are_known),
    "_typehints _typehint": Use("cli/misfits.py cli/parsers.py", ERRORS, options_are_known),
    "_check_type _util": Use("cli/misfits.py", ERRORS, types_are_checked),
    "_enable_path": Use(
        "cli/parsers.py",
        "`strategy: ddp` depends on there being no file ddp, and a teacher's file is read as YAML",
        options_are_known,
    ),
    "_foreach_lerp_": Use("modules/ema.py", "no averages of weights", averaged),
    "_subclasses": Use(
        "autodiff/methods/base.py bench/dry_run.py",
        "scm bench --dry-run cannot count a step",
        fake_tensors,
    ),
    "_python_dispatch": Use(
        "bench/counting.py", "scm bench counts neither FLOPs nor memory", seen_dispatch
    ),
    "_pytree": Use("storage/parts.py", "no checkpoint is saved in parts", mapped_trees),
    "_dynamo": Use(
        "autodiff/compiled.py", "a network that cannot be compiled ends in a trace", compiler_errors
    ),
    "_scaled_dot_product_flash_attention_for_cpu": Use(
        "autodiff/jvp_attention/primal.py bench/counting.py",
        ATTENTION,
        lambda: attended("_scaled_dot_product_flash_attention_for_cpu", "output", "logsumexp"),
    ),
    "_scaled_dot_product_flash_attention_for_cpu_backward": Use(
        "autodiff/jvp_attention/fused.py bench/counting.py",
        ATTENTION,
        lambda: attended("_scaled_dot_product_flash_attention_for_cpu_backward", "grad_query"),
    ),
    "_scaled_dot_product_flash_attention": Use(
        "autodiff/jvp_attention/primal.py bench/counting.py",
        ATTENTION,
        lambda: attended("_scaled_dot_product_flash_attention", "output", "logsumexp"),
    ),
    "_scaled_dot_product_flash_attention_backward": Use(
        "autodiff/jvp_attention/fused.py bench/counting.py",
        ATTENTION,
        lambda: attended("_scaled_dot_product_flash_attention_backward", "grad_query"),
    ),
    "_scaled_dot_product_efficient_attention": Use(
        "autodiff/jvp_attention/primal.py",
        ATTENTION,
        lambda: attended("_scaled_dot_product_efficient_attention", "output", "log_sumexp"),
    ),
    "_softmax_backward_data": Use(
        f"{DUAL}layer_rules.py", "no derivative of softmax", has(aten, "_softmax_backward_data")
    ),
    "_functorch": Use(
        "autodiff/jvp_attention/functional.py autodiff/readings.py",
        "attention under torch.func.jvp is wrong or refused; the check finds no module",
        functorch_names,
    ),
    "_current_level": Use(
        "autodiff/jvp_attention/functional.py",
        "attention within forward mode has no derivative",
        forward_mode_levels,
    ),
    "_set_fwd_grad_enabled": Use(
        f"{DUAL}forward_mode.py",
        "operations without a rule of ours have no derivative",
        lambda: takes(forward_ad._set_fwd_grad_enabled.__init__, "self", "mode")(),
    ),
    "_cdata": Use(
        f"{DUAL}forward_mode.py",
        "writes through a view lose the tangent",
        lambda: isinstance(torch.zeros(2).untyped_storage()._cdata, int),
    ),
    "_base": Use(
        f"{DUAL}writes.py",
        "writes through a view lose the tangent",
        lambda: torch.zeros(2).view(1, 2)._base is not None,
    ),
    "_version": Use(
        f"{DUAL}forward_mode.py {DUAL}numbers.py",
        "a value that is overwritten before its derivative is taken is not noticed",
        counted_version,
    ),
    "_DisableFuncTorch": Use(
        "autodiff/repaired_jvp.py",
        "dropout under torch.func.jvp draws another mask; FSDP2's gradients cannot be checked",
        nothing_outside_of_transforms,
    ),
    "_are_functorch_transforms_active": Use(
        f"{DUAL}numbers.py", "every call of a network is slower", nothing_outside_of_transforms
    ),
    "_is_torch_function_mode_enabled": Use(
        f"{DUAL}doors.py", "calls that torch does not announce lose the tangent", mode_is_seen
    ),
    "_disabled_torch_function_impl": Use(
        f"{DUAL}numbers.py",
        "tensors of other libraries are refused",
        has(torch._C, "_disabled_torch_function_impl"),
    ),
    "_SingleLevelFunction": Use(
        f"{DUAL}doors.py", "an autograd.Function loses the tangent", functions_are_seen
    ),
    "_set_grad_enabled": Use(
        f"{DUAL}carriers.py", "no derivative at all", has(torch._C, "_set_grad_enabled")
    ),
    "_nn": Use(f"{DUAL}rules.py", "no derivative of gelu and its like", has(torch._C._nn, "gelu")),
    "_execution_device": Use(
        "export/pipeline.py", "offloading", has(DiffusionPipeline, "_execution_device")
    ),
    "_buffers _parameters": Use(
        "autodiff/readings.py",
        "the check changes the network",
        has(torch.nn.Module(), "_buffers", "_parameters"),
    ),
}
"""By name, beside `torch._C`, whose own names are those here."""
