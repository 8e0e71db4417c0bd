"""Record snapshots in Lightning."""

from __future__ import annotations

try:
    import lightning
except ModuleNotFoundError as error:
    if error.name != "lightning":
        raise
    raise ImportError("this callback needs Lightning; pip install lightning", name="lightning") from error

from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.snapshots import Snapshots


class SnapshotCallback(lightning.Callback):
    """Records the weights when training starts and then at the end of epochs; the step is Lightning's `global_step`.

    Args:
        snapshots: Where to.
        every_n_epochs: Record after so many epochs each time.

    Raises:
        LandscapeError: `every_n_epochs` is less than 1.
    """

    def __init__(self, snapshots: Snapshots, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise LandscapeError(f"every_n_epochs is {every_n_epochs}: it must be 1 or more")
        self.snapshots, self.every_n_epochs = snapshots, every_n_epochs

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Record what the training starts from; a resumed one starts from its checkpoint."""
        self.snapshots.save(pl_module, trainer.global_step)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Record the weights, if it is time."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.snapshots.save(pl_module, trainer.global_step)
