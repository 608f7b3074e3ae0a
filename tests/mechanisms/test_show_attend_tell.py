import pytest
import torch

from atbook.mechanisms.show_attend_tell import ShowAttendTell, SoftAttention, doubly_stochastic


def model():
    torch.manual_seed(0)
    return ShowAttendTell(features=3, words=5, hidden=4)


def test_attention_is_the_softmax_of_a_small_network_coded_anew():
    torch.manual_seed(0)
    attention, a, h = SoftAttention(3, 4), torch.randn(2, 6, 3), torch.randn(2, 4)
    weight, bias = attention.W_a.weight, attention.W_a.bias
    for n in range(2):
        seen = [torch.tanh(weight @ a[n, i] + bias + attention.W_h.weight @ h[n]) for i in range(6)]
        e = [attention.v.weight[0] @ part for part in seen]
        total = sum(torch.exp(score) for score in e)
        torch.testing.assert_close(attention(a, h)[n], torch.stack([torch.exp(score) / total for score in e]))


def test_attention_follows_the_places_wherever_they_are():
    attention, a, h = SoftAttention(3, 4), torch.randn(1, 6, 3), torch.randn(1, 4)
    order = torch.randperm(6)
    torch.testing.assert_close(attention(a[:, order], h), attention(a, h)[:, order])


def test_a_step_is_the_papers_equations_coded_anew():
    net, a, (h, c) = model(), torch.randn(1, 6, 3), torch.randn(2, 1, 4)
    logits, alpha, (h1, c1) = net.step(a, torch.tensor([2]), (h, c))
    beta = 1 / (1 + torch.exp(-(net.f_beta.weight[0] @ h[0] + net.f_beta.bias)))
    z = beta * sum(alpha[0, i] * a[0, i] for i in range(6))
    y = net.E.weight[2]
    lstm = net.lstm
    gates = lstm.weight_ih @ torch.cat([y, z]) + lstm.bias_ih + lstm.weight_hh @ h[0] + lstm.bias_hh
    i, f, g, o = gates.split(4)
    torch.testing.assert_close(c1[0], f.sigmoid() * c[0] + i.sigmoid() * g.tanh())
    torch.testing.assert_close(h1[0], o.sigmoid() * c1[0].tanh())
    within = y + net.L_h.weight @ h1[0] + net.L_h.bias + net.L_z.weight @ z + net.L_z.bias
    torch.testing.assert_close(logits[0], net.L_o.weight @ within + net.L_o.bias)


def test_the_state_begins_with_the_mean_annotation_and_a_word_of_its_own():
    net, a = model(), torch.randn(2, 6, 3)
    word, (h, c) = net.begin(a)
    assert word.tolist() == [5, 5] and net.E.num_embeddings == 6
    mean = a.sum(dim=1) / 6
    torch.testing.assert_close(h, torch.tanh(mean @ net.init_h.weight.T + net.init_h.bias))
    torch.testing.assert_close(c, torch.tanh(mean @ net.init_c.weight.T + net.init_c.bias))


def test_logits_of_a_word_depend_on_the_words_before_it_alone():
    net, a = model(), torch.randn(1, 6, 3)
    logits, alpha = net(a, torch.tensor([[0, 1, 2]]))
    assert logits.shape == (1, 3, 5) and alpha.shape == (1, 3, 6)
    torch.testing.assert_close(alpha.sum(dim=2), torch.ones(1, 3))
    other, _ = net(a, torch.tensor([[0, 3, 2]]))
    assert torch.equal(logits[:, :2], other[:, :2]) and not torch.allclose(logits[:, 2], other[:, 2])


def test_what_is_written_is_the_likeliest_given_itself():
    net, a = model(), torch.randn(4, 6, 3)
    net.L_o.weight.data *= 20  # so that images differ in what is written
    words, alpha = net.write(a, 4)
    logits, again = net(a, words)
    assert torch.equal(words, logits.argmax(dim=2)) and len(words.unique()) > 1
    torch.testing.assert_close(alpha, again.detach())


def test_regulariser_by_hand_and_where_it_is_least():
    alpha = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [1.0, 0.0]]])
    assert doubly_stochastic(alpha).item() == pytest.approx((0.5**2 + 0.5**2 + 0) / 2)
    uniform = torch.full((1, 3, 12), 1 / 12)
    assert doubly_stochastic(uniform).item() == pytest.approx((1 - 3 / 12) ** 2 * 12)
    torch.manual_seed(0)
    assert doubly_stochastic(torch.randn(1, 3, 12).softmax(dim=2)) > doubly_stochastic(uniform)
