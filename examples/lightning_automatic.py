"""Lightning with automatic optimisation, gradient accumulation and clipping by the Trainer."""

import lightning
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from digits import accuracy, network, noisy_digits
from molere import Reweighter


class Digits(lightning.LightningModule):
    """A classifier whose examples are weighted."""

    def __init__(self, val: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.net, self.val = network(), val

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimiser, which the weighting method looks ahead with."""
        optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
        self.weigh = Reweighter("mwn", self.net, optimizer, val=self.val, accumulate=2, grad_clip=5.0)  # <-
        return optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The weighted mean of the losses."""
        x, y = batch
        w = self.weigh(x, y)  # <-
        return (w * F.cross_entropy(self.net(x), y, reduction="none")).mean()  # <-


def main(epochs: int = 4) -> float:
    """Accuracy after training."""
    train, val, test = noisy_digits()
    module = Digits(val)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", accumulate_grad_batches=2, gradient_clip_val=5.0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*train), batch_size=32, shuffle=True))
    return accuracy(module.net, test)


if __name__ == "__main__":
    print(f"accuracy {main():.3f}")
