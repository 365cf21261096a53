# SPDX-License-Identifier: Apache-2.0
r"""Cross-attention of pixels or patches to the tokens of a text.

    k, v of the tokens and of one learned token more;    y = x + out(softmax(q k^T + mask) v)

The learned token is always there: an empty text, of which the mask hides everything, is what the
network has learned about none. Text is constant in u and t, so keys and values carry no tangent.
Source: queries and keys normalised per head, as in SANA-Sprint, arXiv 2503.09641; cross-attention
behind self-attention, its output zero at the start: PixArt, arXiv 2310.00426, Section 2.3.
Axes: B batch, M pixels or patches, L tokens, D features of a token, C channels, H heads.
"""

import torch
from torch import Tensor, nn

from scm_lightning.autodiff import attention
from scm_lightning.core import at_least_float32
from scm_lightning.networks.embeddings import PreciseLinear
from scm_lightning.networks.time_embedding import PositionalEmbedding


class CrossAttention(nn.Module):
    """Multi-head attention to the tokens of a text, with normalised queries and keys.

    It adds nothing at the start. Every block has keys and values of its own, so that each can ask
    for something else.

    Args:
        num_channels: channels C of the pixels or patches.
        num_heads: heads H, a divisor of C.
        token_channels: channels of the tokens.
    """

    def __init__(self, num_channels: int, num_heads: int, token_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(num_channels, num_channels)
        self.kv = nn.Linear(token_channels, 2 * num_channels)
        self.out = nn.Linear(num_channels, num_channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Attend.

        Args:
            x: pixels or patches. (B, M, C).
            tokens: what `TextTokens` made of the text. (B, 1 + L, token_channels).
            mask: which of them there are. (B, 1, 1, 1 + L), bool.

        Returns:
            What is to be added to x. (B, M, C).
        """
        q = self.q(x).reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
        kv = self.kv(tokens).reshape(*tokens.shape[:2], 2, self.num_heads, -1)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, 1 + L, C / H) each
        size = q.shape[-1:]
        q, k = nn.functional.rms_norm(q, size), nn.functional.rms_norm(k, size)
        y = attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class TextTokens(nn.Module):
    """The text as all blocks of a network see it, and its mean for the embedding.

    The tokens are brought to unit mean square, since encoders differ in scale by orders of
    magnitude, and from D features to C channels once for all blocks: D can be many times C.

    Args:
        text_channels: features D of a token.
        num_channels: channels C of the tokens that blocks attend to, even.
        emb_channels: channels of the embedding.
    """

    def __init__(self, text_channels: int, num_channels: int, emb_channels: int) -> None:
        super().__init__()
        self.input = nn.Linear(text_channels, num_channels)
        self.position = PositionalEmbedding(num_channels)
        self.learned = nn.Parameter(torch.randn(num_channels))
        self.pooled = PreciseLinear(text_channels, emb_channels, bias=False)
        nn.init.zeros_(self.pooled.weight)

    def forward(self, text: Tensor, text_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Project the text.

        Args:
            text: tokens. (B, L, D).
            text_mask: which of them there are, or None for all. (B, L), bool.

        Returns:
            Tokens behind the learned one, (B, 1 + L, C), their mask, (B, 1, 1, 1 + L), and what the
            mean of the text adds to the embedding, zero of an empty text and at the start,
            (B, emb_channels).
        """
        num, length, width = text.shape
        if text_mask is None:
            text_mask = torch.ones(num, length, dtype=torch.bool, device=text.device)
        # Not multiplied: what lies behind a text may be anything.
        text = at_least_float32(text).masked_fill(~text_mask[..., None], 0.0)
        text = nn.functional.rms_norm(text, (width,), eps=1e-6)
        mean = text.sum(1) / text_mask.sum(1, keepdim=True).clamp(min=1)
        tokens = self.input(text.to(self.input.weight.dtype))
        places = self.position(torch.arange(length, device=text.device))
        learned = self.learned.to(tokens.dtype).expand(num, 1, -1)
        tokens = torch.cat([learned, tokens + places.to(tokens.dtype)], dim=1)
        mask = torch.cat([text_mask.new_ones(num, 1), text_mask], dim=1)
        return tokens, mask[:, None, None], self.pooled(mean)


def check_text(
    text_channels: int, text: Tensor | None, text_mask: Tensor | None, num_samples: int
) -> None:
    """Refuse a text that a network was built without, require that of one built with it.

    Args:
        text_channels: features D of a token; 0 for a network without text.
        text: tokens. (B, L, D), or None.
        text_mask: which of them there are. (B, L), or None.
        num_samples: samples B that the network is called with.

    Raises:
        ValueError: if the text does not fit.
    """
    if text is None:
        if text_channels or text_mask is not None:
            raise ValueError(
                f"a network built with text_channels={text_channels} got no text; set "
                "text_channels to 0 for data without, or give data with text"
            )
        return
    wanted = (num_samples, text.shape[1] if text.ndim > 1 else "L", text_channels)
    if not text_channels or tuple(text.shape) != wanted:
        raise ValueError(
            f"a network built with text_channels={text_channels} got a text of shape "
            f"{tuple(text.shape)}, (samples, tokens, features); set text_channels to its features"
        )
    if text_mask is not None and (
        text_mask.shape != text.shape[:2] or text_mask.dtype != torch.bool
    ):
        raise ValueError(
            f"text_mask must be boolean of shape {tuple(text.shape[:2])}, True for a token, got "
            f"{text_mask.dtype} of shape {tuple(text_mask.shape)}"
        )
