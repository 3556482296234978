"""The seed's Transformer block with the place of its normalization as an argument, and a stack of them."""

import torch
from torch import Tensor, nn

from normtutor.networks.norm import Norm, build_norm

PLACEMENTS = ("post", "pre", "sandwich")


class TransformerBlock(nn.Module):
    """Self-attention and a feed-forward network, each with a residual connection and its normalization.

    Where the normalization stands, for a sublayer F:

    - ``"post"``: x ← norm(x + F(x)), as the original (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762);
    - ``"pre"``: x ← x + F(norm(x)) (Xiong et al. 2020, https://arxiv.org/abs/2002.04745, Figure 1b);
    - ``"sandwich"``: x ← x + norm(F(norm(x))) (Ding et al. 2021, https://arxiv.org/abs/2105.13290).

    The normalization sees a batch of vectors, (tokens, hidden_dim): sequences make no difference to it. So
    ``"layer"`` and ``"rms"`` take the hidden features of one token, ``"batch"`` one feature of all tokens,
    padding included.

    Args:
        hidden_dim: D, size of a token.
        num_heads: heads of the attention, a divisor of D.
        dropout: share of the attention's weights and of the feed-forward values set to 0 in training.
        placement: "post", "pre" or "sandwich".
        norm: see :func:`normtutor.networks.build_norm`; it gets the shape (1, D).
        batch_first: tokens come as (N, T, D); False: as (T, N, D), as in the seed.
        causal: a token attends to itself and to those before it only.

    Shape: (N, T, D), or (T, N, D) without ``batch_first`` → the same.

    Raises:
        ValueError: a size, ``dropout`` or ``placement`` out of range; a ``norm`` that is unknown, or not
            defined on vectors; in ``forward``, an input or a mask of another shape or type.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        dropout: float = 0.1,
        placement: str = "post",
        norm: Norm = "layer",
        batch_first: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if num_heads < 1 or hidden_dim < 1 or hidden_dim % num_heads:
            raise ValueError(
                f"expected num_heads to be a divisor of hidden_dim, got {num_heads} heads of {hidden_dim}"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"expected dropout between 0 and 1, got {dropout}")
        if placement not in PLACEMENTS:
            raise ValueError(f"unknown placement {placement!r}: expected one of {', '.join(PLACEMENTS)}")
        self.hidden_dim, self.placement = hidden_dim, placement
        self.batch_first, self.causal = batch_first, causal
        self.attention = nn.MultiheadAttention(hidden_dim, num_heads, dropout, batch_first=batch_first)
        self.norm1 = build_norm(norm, (1, hidden_dim))
        self.norm2 = build_norm(norm, (1, hidden_dim))
        if placement == "sandwich":
            self.norm1_out = build_norm(norm, (1, hidden_dim))
            self.norm2_out = build_norm(norm, (1, hidden_dim))
        self.ffn = nn.Sequential(
            nn.Linear(hidden_dim, 4 * hidden_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4 * hidden_dim, hidden_dim),
            nn.Dropout(dropout),
        )

    def forward(self, input: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """``key_padding_mask``: (N, T), True where a token is padding, which no token attends to.

        A token that may attend to none, in a sequence of padding alone, comes out as NaN.
        """
        self._check(input, key_padding_mask)
        x = input
        if self.placement == "post":
            x = per_token(self.norm1, x + self._attend(x, key_padding_mask))
            x = per_token(self.norm2, x + self.ffn(x))
        elif self.placement == "pre":
            x = x + self._attend(per_token(self.norm1, x), key_padding_mask)
            x = x + self.ffn(per_token(self.norm2, x))
        else:
            x = x + per_token(self.norm1_out, self._attend(per_token(self.norm1, x), key_padding_mask))
            x = x + per_token(self.norm2_out, self.ffn(per_token(self.norm2, x)))
        return x

    def _attend(self, x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        later = None
        if self.causal:
            tokens = x.size(1 if self.batch_first else 0)
            later = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
        attended: Tensor = self.attention(
            x, x, x, key_padding_mask=key_padding_mask, attn_mask=later, need_weights=False
        )[0]
        return attended

    def _check(self, input: Tensor, key_padding_mask: Tensor | None) -> None:
        order = "(N, T," if self.batch_first else "(T, N,"
        if input.dim() != 3 or input.size(2) != self.hidden_dim:
            raise ValueError(f"expected input {order} {self.hidden_dim}), got {tuple(input.shape)}")
        if key_padding_mask is None:
            return
        n, tokens = input.shape[:2] if self.batch_first else (input.size(1), input.size(0))
        if tuple(key_padding_mask.shape) != (n, tokens) or key_padding_mask.dtype != torch.bool:
            raise ValueError(
                f"expected key_padding_mask ({n}, {tokens}) of torch.bool, got "
                f"{tuple(key_padding_mask.shape)} of {key_padding_mask.dtype}"
            )


class Transformer(nn.Module):
    """``depth`` blocks; for "pre" and "sandwich" a last normalization, which their residual path lacks.

    Args:
        hidden_dim, num_heads, dropout, placement, norm, batch_first, causal: of every
            :class:`TransformerBlock`.
        depth: number of blocks.

    Shape: (N, T, D), or (T, N, D) without ``batch_first`` → the same.

    Raises:
        ValueError: ``depth`` is below 1; or as the block's.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        depth: int,
        dropout: float = 0.1,
        placement: str = "pre",
        norm: Norm = "layer",
        batch_first: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"expected at least one block, got depth {depth}")
        self.blocks = nn.ModuleList(
            TransformerBlock(hidden_dim, num_heads, dropout, placement, norm, batch_first, causal)
            for _ in range(depth)
        )
        self.norm = nn.Identity() if placement == "post" else build_norm(norm, (1, hidden_dim))

    def forward(self, input: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """``key_padding_mask``: as the block's."""
        x = input
        for block in self.blocks:
            x = block(x, key_padding_mask)
        return per_token(self.norm, x)


def per_token(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm`` of every token by itself: (*, D) as a batch of vectors."""
    normalized: Tensor = norm(x.flatten(0, -2)).view(x.shape)
    return normalized
