# SPDX-License-Identifier: Apache-2.0
"""Fully sharded data parallelism as a flag: `--trainer.strategy fsdp2`.

    fsdp2            a checkpoint is one file of whole tensors, the same as one process writes
    fsdp2_sharded    a checkpoint is a folder, to which every process writes its part; for networks
                     of which one process cannot hold all averages and moments, or not save in time

With either, a run continues with any number of processes and any strategy, and `scm test`,
`scm predict`, `scm export` and `teacher:` read it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy, StrategyRegistry
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.optim import Optimizer

from scm_lightning.modules.sharding import full_tensor, sharded_like
from scm_lightning.storage import Checkpoint


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's strategy for torch's `fully_shard`, over all processes of the run.

    The module shards itself in `configure_model`. Lightning's own strategy saves a folder that one
    process cannot load, and numbers optimizer states by the parameters of the whole module, so its
    files fit no other strategy; here Lightning's usual way is taken.

    Args:
        sharded_checkpoints: whether a checkpoint is a folder of parts; the callback that saves asks
            for it, since a folder cannot be replaced in one step as a file can.

    Raises:
        ValueError: if the precision is 16-mixed, whose loss scale would differ between processes.
    """

    def __init__(self, sharded_checkpoints: bool = False) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.sharded_checkpoints = sharded_checkpoints

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Weights and callbacks are restored when they are without sharding."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Optimizers are restored by the call that is made without sharding."""
        return True

    def setup_environment(self) -> None:
        """Spread the data over all processes; Lightning's default is one part per machine."""
        if self.precision_plugin.precision == "16-mixed":
            raise ValueError(
                "fsdp2 takes the precision 32-true or bf16-mixed, got 16-mixed; pass "
                "--trainer.precision bf16-mixed"
            )
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Parts of the weights; or whole weights in the first process, nothing in the others."""
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        return state if self.sharded_checkpoints else self._whole(state)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Optimizer states, likewise."""
        state = optimizer.state_dict()
        return state if self.sharded_checkpoints else self._whole(state)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read this process's part of a folder; or a whole file, as without sharding."""
        if Path(checkpoint_path).is_dir():
            assert self.device_mesh is not None
            return Checkpoint(checkpoint_path).read(self.device_mesh["data_parallel"])
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's part of the weights."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        weights = {
            name: sharded_like(weight, own[name]) if name in own else weight
            for name, weight in checkpoint["state_dict"].items()
        }
        self.lightning_module.load_state_dict(weights, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of the optimizer states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            owners = [each for group in optimizer.param_groups for each in group["params"]]
            parts = {}
            for number, owner in zip(numbers, owners, strict=True):
                if number in state["state"]:
                    parts[number] = {
                        name: sharded_like(value, owner) if isinstance(value, Tensor) else value
                        for name, value in state["state"][number].items()
                    }
            optimizer.load_state_dict({**state, "state": parts})

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write this process's part; or the file from the first process, as without sharding."""
        if self.sharded_checkpoints:
            Checkpoint(filepath).write(checkpoint, in_parts=True)
        else:
            ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        def gather(x: Tensor) -> Tensor | None:
            whole = full_tensor(x)
            return whole.cpu() if self.is_global_zero else None  # else one at a time is whole

        gathered: dict[str, Any] = apply_to_collection(state, Tensor, gather)
        return gathered if self.is_global_zero else {}


StrategyRegistry.register(
    "fsdp2", FSDP2Strategy, description="fully sharded data parallelism", override=True
)
StrategyRegistry.register(
    "fsdp2_sharded",
    FSDP2Strategy,
    description="the same, with checkpoints in parts",
    override=True,
    sharded_checkpoints=True,
)
