"""timm's training script, reduced: its optimiser, schedule, loss scaling with clipping, and average of weights.

In `train.py` of timm the three lines belong into `main`, after the optimiser is made (give it the model before it is
wrapped for many processes), and into `train_one_epoch`, where the loss is computed. `loss_fn` needs reduction="none";
mixup and cutmix mix labels and go without weights.
"""

from types import SimpleNamespace

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, NativeScaler
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from digits import accuracy, noisy_digits
from molere import Reweighter


def main(epochs: int = 3) -> float:
    """Accuracy of the averaged model."""
    args = SimpleNamespace(opt="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, clip_grad=5.0, batch_size=64, amp=False)
    (x, y), (xv, yv), (xt, yt) = ((x.view(-1, 1, 8, 8), y) for x, y in noisy_digits(384))
    torch.manual_seed(0)
    model = timm.create_model("test_resnet.r160_in1k", pretrained=False, num_classes=10, in_chans=1)
    optimizer = create_optimizer_v2(
        model, opt=args.opt, lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )
    scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=epochs)
    scaler, ema = NativeScaler(device="cpu"), ModelEmaV3(model, decay=0.9)
    weigh = Reweighter(  # <-
        "lrw-random[q=4]", model, optimizer, val=(xv, yv), grad_clip=args.clip_grad, recipe={"val_batch_size": 32}
    )
    loader = DataLoader(TensorDataset(x, y), batch_size=args.batch_size, shuffle=True, drop_last=True)
    for epoch in range(epochs):
        model.train()
        for inputs, target in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=args.amp):
                output = model(inputs)
                w = weigh(inputs, target)  # <-
                loss = (w * F.cross_entropy(output, target, reduction="none")).mean()  # <-
            optimizer.zero_grad()
            scaler(loss, optimizer, clip_grad=args.clip_grad, parameters=model.parameters())
            ema.update(model)
        scheduler.step(epoch + 1)
    return accuracy(ema.module, (xt, yt))


if __name__ == "__main__":
    print(f"accuracy {main():.3f}")
