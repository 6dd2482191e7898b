"""Lightning with manual optimisation; the weighting method is saved in Lightning's checkpoints."""

from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from digits import accuracy, network, noisy_digits
from molere import Reweighter


class Digits(lightning.LightningModule):
    """A classifier whose examples are weighted."""

    def __init__(self, val: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.val = network(), val

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimiser, which the weighting method looks ahead with."""
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.weigh = Reweighter("gdw", self.net, optimizer, val=self.val)  # <-
        return optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """One update; gdw weighs the classes of an example, so the loss is asked for."""
        optimizer: Any = self.optimizers()
        loss = self.weigh.loss(*batch)  # <-
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The method's state goes with the model's."""
        checkpoint["weigh"] = self.weigh.state_dict()  # <-

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """And comes back with it."""
        self.weigh.load_state_dict(checkpoint["weigh"])


def main(epochs: int = 4) -> float:
    """Accuracy after training."""
    train, val, test = noisy_digits()
    module = Digits(val)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*train), batch_size=32, shuffle=True))
    return accuracy(module.net, test)


if __name__ == "__main__":
    print(f"accuracy {main():.3f}")
