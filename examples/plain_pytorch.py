"""A loop of one's own, with autocast, gradient accumulation, clipping and an average of weights."""

import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from digits import accuracy, network, noisy_digits
from molere import Reweighter


def main(epochs: int = 4, parts: int = 2) -> float:
    """Accuracy of the averaged model."""
    train, val, test = noisy_digits()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    weigh = Reweighter("l2r", model, optimizer, val=val, accumulate=parts, grad_clip=5.0)  # <-
    for _ in range(epochs):
        model.train()
        for part, (x, y) in enumerate(DataLoader(TensorDataset(*train), batch_size=32, shuffle=True, drop_last=True)):
            with torch.autocast("cpu", torch.bfloat16):
                w = weigh(x, y)  # <-
                losses = F.cross_entropy(model(x), y, reduction="none")
            loss = (w * losses).mean()  # <-
            (loss / parts).backward()
            if (part + 1) % parts == 0:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                optimizer.zero_grad()
                ema.update_parameters(model)
    return accuracy(ema, test)


if __name__ == "__main__":
    print(f"accuracy {main():.3f}")
