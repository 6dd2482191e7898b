"""skorch: a NeuralNetClassifier whose `get_loss` weighs the examples."""

from typing import Any

import torch
from skorch import NeuralNetClassifier
from torch import Tensor, nn

from digits import network, noisy_digits
from molere import Reweighter


class Weighted(NeuralNetClassifier):
    """A skorch classifier whose examples are weighted; `validation` holds the checked ones."""

    def __init__(self, *args: Any, validation: tuple[Tensor, Tensor] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.validation = validation

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> "Weighted":
        """The optimiser, and the weighting method that looks ahead with it."""
        super().initialize_optimizer(*args, **kwargs)
        self.weigh_ = Reweighter("mwn", self.module_, self.optimizer_, val=self.validation)  # <-
        return self

    def get_loss(self, y_pred: Tensor, y_true: Tensor, X: Tensor, training: bool = False) -> Tensor:
        """The weighted mean of the losses in training, their plain mean otherwise."""
        losses: Tensor = self.criterion_(y_pred, y_true)
        if training:
            losses = self.weigh_(X, y_true) * losses  # <-
        return losses.mean()


def main(epochs: int = 4) -> float:
    """Accuracy after training."""
    train, val, test = noisy_digits()
    torch.manual_seed(0)
    net = Weighted(
        network(), criterion=nn.CrossEntropyLoss, criterion__reduction="none", optimizer=torch.optim.SGD,
        optimizer__momentum=0.9, lr=0.1, max_epochs=epochs, batch_size=32, train_split=None, validation=val, verbose=0,
        iterator_train__shuffle=True,
    )  # fmt: skip
    net.fit(train[0], train[1])
    return float((torch.as_tensor(net.predict(test[0])) == test[1]).float().mean())


if __name__ == "__main__":
    print(f"accuracy {main():.3f}")
