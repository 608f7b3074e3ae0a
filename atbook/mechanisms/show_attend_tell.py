"""Show, attend and tell: look somewhere before each word that is written (Xu et al., ICML 2015, arXiv 1502.03044)."""

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]  # h and c of the LSTM, each (N, hidden)


class SoftAttention(nn.Module):
    """alpha_ti = softmax over i of e_ti = v tanh(W_a a_i + W_h h_t-1): where to look, given what has been written.

    The paper calls the network e = f_att(a_i, h_t-1) and leaves its layers open; these are those of the authors' code.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.W_a, self.W_h = nn.Linear(features, hidden), nn.Linear(hidden, hidden, bias=False)
        self.v = nn.Linear(hidden, 1, bias=False)

    def forward(self, a: Tensor, h: Tensor) -> Tensor:
        """Annotations `(N, L, D)` and state `(N, hidden)` -> weights `(N, L)`, which sum to 1."""
        e = self.v(torch.tanh(self.W_a(a) + self.W_h(h)[:, None]))[..., 0]
        return e.softmax(dim=1)


class ShowAttendTell(nn.Module):
    """Writes words about an image that is given as L annotation vectors a_i, one for each place.

    Each step: z_t = beta_t sum_i alpha_ti a_i with the gate beta_t = sigmoid(f_beta(h_t-1)); an LSTM is fed the last
    word's embedding E y_t-1 and z_t; p(y_t) is the softmax of L_o (E y_t-1 + L_h h_t + L_z z_t) (their sections 3.1.2
    and 4.2). The state begins as a function of the mean annotation.

    Args:
        features: D, of an annotation vector.
        words: K, size of the vocabulary; a further embedding stands for the beginning.
        hidden: of LSTM, embedding and attention.
    """

    def __init__(self, features: int, words: int, hidden: int) -> None:
        super().__init__()
        self.words = words
        self.E = nn.Embedding(words + 1, hidden)
        self.init_h, self.init_c = nn.Linear(features, hidden), nn.Linear(features, hidden)
        self.attention, self.f_beta = SoftAttention(features, hidden), nn.Linear(hidden, 1)
        self.lstm = nn.LSTMCell(hidden + features, hidden)
        self.L_h, self.L_z, self.L_o = nn.Linear(hidden, hidden), nn.Linear(features, hidden), nn.Linear(hidden, words)

    def begin(self, a: Tensor) -> tuple[Tensor, State]:
        """Annotations -> the word before the first `(N,)`, and the first state."""
        mean = a.mean(dim=1)
        state = torch.tanh(self.init_h(mean)), torch.tanh(self.init_c(mean))
        return torch.full(a.shape[:1], self.words, device=a.device), state

    def step(self, a: Tensor, word: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Annotations, last word and state -> logits `(N, K)`, weights alpha `(N, L)`, the next state."""
        alpha, y = self.attention(a, state[0]), self.E(word)
        z = torch.sigmoid(self.f_beta(state[0])) * (alpha[..., None] * a).sum(dim=1)
        state = self.lstm(torch.cat([y, z], dim=1), state)
        return self.L_o(y + self.L_h(state[0]) + self.L_z(z)), alpha, state

    def forward(self, a: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
        """For training: annotations and the right words `(N, T)` -> logits `(N, T, K)` and weights `(N, T, L)`.

        The logits of each word are computed from the right words before it.
        """
        (word, state), made = self.begin(a), []
        for following in written.unbind(dim=1):
            logits, alpha, state = self.step(a, word, state)
            made.append((logits, alpha))
            word = following
        return tuple(torch.stack(part, dim=1) for part in zip(*made, strict=True))

    @torch.no_grad()
    def write(self, a: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Annotations -> the likeliest word at each step, `(N, length)`, and weights `(N, length, L)`."""
        (word, state), made = self.begin(a), []
        for _ in range(length):
            logits, alpha, state = self.step(a, word, state)
            word = logits.argmax(dim=1)
            made.append((word, alpha))
        return tuple(torch.stack(part, dim=1) for part in zip(*made, strict=True))


def doubly_stochastic(alpha: Tensor) -> Tensor:
    """The paper's regulariser, sum_i (1 - sum_t alpha_ti)^2, mean over images: weights `(N, T, L)` -> a scalar, >= 0.

    It asks that each place be looked at for one step in all. Weights sum to T over steps and places, so with fewer
    steps than places it cannot be 0: it is least, (1 - T/L)^2 L, where all places are looked at equally.
    """
    return (1 - alpha.sum(dim=1)).square().sum(dim=1).mean()
