"""Recurrent networks whose pre-activations are normalized at every step (Ba, Kiros & Hinton 2016)."""

from typing import Any

import torch
from torch import Tensor, nn

from normtutor.networks.norm import Norm, build_norm


class TanhCell(nn.Module):
    """h ← tanh(norm(W x + U h)), Ba et al. 2016, equation 4; without normalization b is added instead.

    Shape: (N, input_size), (N, H) → (N, H).
    """

    def __init__(self, input_size: int, hidden_size: int, norm: Norm = "none") -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.from_input = nn.Linear(input_size, hidden_size)
        self.from_state = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm = build_norm(norm, (1, hidden_size))

    def start(self, n: int, like: Tensor) -> Tensor:
        """The state before the first step."""
        return like.new_zeros(n, self.hidden_size)

    def forward(self, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The new hidden state, and what the next step needs: the same."""
        h = torch.tanh(self.norm(self.from_input(input) + self.from_state(state)))
        return h, h


class LSTMCell(nn.Module):
    """An LSTM, normalized in three places (Ba et al. 2016, supplementary material, equations 20 to 22).

    (f, i, o, g) = norm(U h) + norm(W x); c ← σ(f) c + σ(i) tanh(g); h = σ(o) tanh(norm(c)).

    W x has a bias here, *inside* its normalization. Without it a single input number would lose its size:
    norm(w x) is the same for every positive x.

    Shape: (N, input_size), ((N, H), (N, H)) → (N, H) and the new state.
    """

    def __init__(self, input_size: int, hidden_size: int, norm: Norm = "none") -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.from_input = nn.Linear(input_size, 4 * hidden_size)
        self.from_state = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.norm_input = build_norm(norm, (1, 4 * hidden_size))
        self.norm_state = build_norm(norm, (1, 4 * hidden_size))
        self.norm_cell = build_norm(norm, (1, hidden_size))

    def start(self, n: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The state before the first step."""
        zero = like.new_zeros(n, self.hidden_size)
        return zero, zero

    def forward(self, input: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The new hidden state h, and what the next step needs: (h, c)."""
        h, c = state
        gates = self.norm_state(self.from_state(h)) + self.norm_input(self.from_input(input))
        forget, write, output, new = gates.chunk(4, dim=1)
        c = torch.sigmoid(forget) * c + torch.sigmoid(write) * torch.tanh(new)
        h = torch.sigmoid(output) * torch.tanh(self.norm_cell(c))
        return h, (h, c)


CELLS = {"tanh": TanhCell, "lstm": LSTMCell}


class RNN(nn.Module):
    """Reads a sequence step by step, then classifies the last hidden state.

    Args:
        input_size: features of one step.
        hidden_size: H, of the state.
        num_classes: K, size of the output.
        cell: "tanh" or "lstm".
        norm: the normalization at every step, see :func:`normtutor.networks.build_norm`. One layer serves all
            steps.

    Shape: (N, T, input_size) → logits (N, K).

    Raises:
        ValueError: an unknown ``cell`` or ``norm``; in ``forward``, an input of another shape, or no step.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_classes: int = 10,
        cell: str = "tanh",
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"unknown cell {cell!r}: expected one of {', '.join(CELLS)}")
        self.input_size = input_size
        self.cell = CELLS[cell](input_size, hidden_size, norm)
        self.head = nn.Linear(hidden_size, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 3 or input.size(1) < 1 or input.size(2) != self.input_size:
            raise ValueError(
                f"expected input (N, T, {self.input_size}) of at least one step, got {tuple(input.shape)}"
            )
        cell: Any = self.cell
        state = cell.start(len(input), like=input)
        for step in input.unbind(1):
            h, state = cell(step, state)
        logits: Tensor = self.head(h)
        return logits
