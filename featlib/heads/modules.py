"""Learned heads: the steps of a video (frames, clips, regions) become one vector, weighed or in order.

Every head is called with ``x`` (N, T, D) in float32, zero where a video has ended, and ``lengths`` (N,), at least 1. It
gives ``HeadOutput``. What lies behind a video's end never changes its vector.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence


@dataclass(frozen=True)
class HeadOutput:
    """What a head gives.

    Args:
        vector: (N, size).
        weights: (N, T), summing to 1 over a video's steps, of heads that weigh them; else None.
    """

    vector: Tensor
    weights: Tensor | None = None


def inside(lengths: Tensor, steps: int) -> Tensor:
    """(N, T), True where a video has not ended."""
    return torch.arange(steps, device=lengths.device)[None] < lengths[:, None]


class Mean(nn.Module):
    """The mean over time; the base line that knows no order."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, lengths: Tensor) -> HeadOutput:
        mask = inside(lengths, x.shape[1])[..., None]
        return HeadOutput((x * mask).sum(1) / lengths[:, None])


_CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class Recurrent(nn.Module):
    """RNN, LSTM or GRU; the vector is the hidden state of the last layer behind a video's last step.

    (Donahue et al., "Long-term Recurrent Convolutional Networks", CVPR 2015: one LSTM layer of 256.)
    """

    def __init__(self, size_in: int, kind: str, hidden: int = 256, layers: int = 1) -> None:
        super().__init__()
        self.cell = _CELLS[kind](size_in, hidden, layers, batch_first=True)
        self.size = hidden

    def forward(self, x: Tensor, lengths: Tensor) -> HeadOutput:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        state = self.cell(packed)[1]
        hidden: Tensor = state[0] if isinstance(state, tuple) else state
        return HeadOutput(hidden[-1])


class _CausalBlock(nn.Module):
    """Two dilated convolutions that see nothing of the future, beside a 1x1 path where the width changes."""

    def __init__(self, channels: int, planes: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.reach = (kernel - 1) * dilation
        self.first = weight_norm(nn.Conv1d(channels, planes, kernel, dilation=dilation))
        self.second = weight_norm(nn.Conv1d(planes, planes, kernel, dilation=dilation))
        self.dropout = nn.Dropout(dropout)
        self.beside = nn.Identity() if channels == planes else nn.Conv1d(channels, planes, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for convolution in (self.first, self.second):
            y = self.dropout(convolution(functional.pad(y, (self.reach, 0))).relu())
        out: Tensor = (y + self.beside(x)).relu()
        return out


class TCN(nn.Module):
    """Temporal convolutional network; the vector is what stands at a video's last step.

    (Bai, Kolter and Koltun, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks", 2018: weight
    norm, dilation 2^i in block i.) It sees ``1 + 2 (kernel - 1)(2^blocks - 1)`` steps back.
    """

    def __init__(self, size_in: int, hidden: int = 256, blocks: int = 4, kernel: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        widths = [size_in, *[hidden] * blocks]
        self.blocks = nn.Sequential(
            *(_CausalBlock(widths[i], widths[i + 1], kernel, 2**i, dropout) for i in range(blocks))
        )
        self.receptive_field = 1 + 2 * (kernel - 1) * (2**blocks - 1)
        self.size = hidden

    def forward(self, x: Tensor, lengths: Tensor) -> HeadOutput:
        steps: Tensor = self.blocks(x.transpose(1, 2))
        last = (lengths - 1).to(steps.device)[:, None, None].expand(-1, steps.shape[1], 1)
        return HeadOutput(steps.gather(2, last)[..., 0])


class Attention(nn.Module):
    """The steps weighed by what they hold: softmax(w . tanh(V h)), as an option times sigmoid(U h).

    (Ilse, Tomczak and Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018.) ``hard`` takes the step
    of the largest weight alone once it is trained; it learns with the soft weights, since from hard ones it does not
    find the step that matters.
    """

    def __init__(self, size_in: int, hidden: int = 128, *, gated: bool = False, hard: bool = False) -> None:
        super().__init__()
        self.score = nn.Linear(size_in, hidden)
        self.gate = nn.Linear(size_in, hidden) if gated else None
        self.weigh = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.weigh.weight)  # begins as the mean
        self.hard = hard
        self.size = size_in

    def forward(self, x: Tensor, lengths: Tensor) -> HeadOutput:
        scores = self.score(x).tanh()
        if self.gate is not None:
            scores = scores * self.gate(x).sigmoid()
        logits = self.weigh(scores)[..., 0].masked_fill(~inside(lengths, x.shape[1]), -torch.inf)
        weights = logits.softmax(1)
        if self.hard and not self.training:
            weights = functional.one_hot(weights.argmax(1), x.shape[1]).to(weights.dtype)
        return HeadOutput((x * weights[..., None]).sum(1), weights)


class Embedding(nn.Module):
    """A metric embedding of unit length over the mean of a video: what Siamese and triplet training learn.

    Both towers of a Siamese pair are this one module.
    """

    def __init__(self, size_in: int, hidden: int = 256, size: int = 64) -> None:
        super().__init__()
        self.mean = Mean(size_in)
        self.layers = nn.Sequential(nn.Linear(size_in, hidden), nn.ReLU(), nn.Linear(hidden, size))
        self.size = size

    def forward(self, x: Tensor, lengths: Tensor) -> HeadOutput:
        return HeadOutput(functional.normalize(self.layers(self.mean(x, lengths).vector), dim=1))


class Classifier(nn.Module):
    """A head and softmax regression on its vector; gives class scores (N, num_classes).

    The regression begins at zero, so that the first thing a head is told is what tells the classes apart. From random
    signs attention may learn to look away from the steps of one class, which it then never sees.
    """

    def __init__(self, head: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.head = head
        self.fc = nn.Linear(int(head.size), num_classes)  # type: ignore[arg-type]
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.head(x, lengths).vector)
        return scores
