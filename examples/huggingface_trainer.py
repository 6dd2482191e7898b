"""The Hugging Face Trainer with `compute_loss` overridden, on a small BERT that reads sixteen words a digit."""

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from digits import noisy_digits
from molere import Reweighter


class Words(Dataset[dict[str, Tensor]]):
    """Digits as sequences: the mean of each 2 x 2 block is one of nine words."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        blocks = F.avg_pool2d(x.view(-1, 1, 8, 8), 2).flatten(1)
        self.input_ids, self.labels = (8 * blocks).round().long(), y

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids[i], "labels": self.labels[i]}


class Weighted(Trainer):
    """A Trainer whose examples are weighted."""

    weigh: Reweighter | None = None
    val: Any

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """The weighted mean of the losses."""
        x, y = {k: v for k, v in inputs.items() if k != "labels"}, inputs["labels"]
        out = model(**x)
        losses = F.cross_entropy(out.logits, y, reduction="none")
        if model.training:
            if self.weigh is None:  # the Trainer makes its optimiser late
                raw = getattr(self.optimizer, "optimizer", self.optimizer)
                self.weigh = Reweighter(
                    "lrw-random[q=2]", self.model, raw, val=self.val, logits=lambda o: o.logits
                )  # <-
            losses = self.weigh(x, y) * losses  # <-
        loss = losses.mean()
        return (loss, out) if return_outputs else loss


def main(epochs: int = 4) -> float:
    """Accuracy after training."""
    train, val, test = noisy_digits()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=9, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )  # fmt: skip
    checked = Words(*val)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=32, learning_rate=5e-3, max_grad_norm=1.0,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = Weighted(BertForSequenceClassification(config), arguments, train_dataset=Words(*train))
        trainer.val = ({"input_ids": checked.input_ids}, checked.labels)
        trainer.train()
        model = trainer.model
    model.eval()
    with torch.no_grad():
        found = model(input_ids=Words(*test).input_ids).logits.argmax(1)
    return float((found == test[1]).float().mean())


if __name__ == "__main__":
    print(f"accuracy {main():.3f}")
