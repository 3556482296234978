"""A plain training loop, so that an experiment shows only what it varies."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one core: the course's networks are small, and a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def train(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int,
    lr: float,
    batch_size: int = 64,
    momentum: float = 0.0,
    seed: int = 0,
    every: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Stochastic gradient descent on the cross-entropy; returns the loss of every step.

    Args:
        model: maps a batch of ``inputs`` to logits; left in training mode.
        inputs, labels: (N, *) and (N,), on the model's device.
        steps: number of updates, each on ``batch_size`` samples drawn with replacement.
        lr, momentum: of the optimizer.
        seed: of the draw of the batches; the model's initialization is the caller's.
        every, on_step: call ``on_step(step)`` after each ``every`` steps (1-based), then train on.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    model.train()
    for step in range(1, steps + 1):
        batch = torch.randint(len(inputs), (batch_size,), generator=generator).to(inputs.device)
        loss = cross_entropy(model(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if on_step is not None and every and step % every == 0:
            on_step(step)
            model.train()
    return losses


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of ``inputs`` classified right in evaluation mode, 0 to 1; the model's mode is kept."""
    was_training = model.training
    model.eval()
    right: float = (model(inputs).argmax(dim=1) == labels).float().mean().item()
    model.train(was_training)
    return right
