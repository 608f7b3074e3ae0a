import pytest
import torch
from torch import nn

from atbook.mechanisms.self_attention import Block, SelfAttention, VisionTransformer, rollout


def tokens(n=2, length=5, width=8):
    torch.manual_seed(0)
    return torch.randn(n, length, width)


def test_weights_are_the_papers_equation_coded_anew():
    Q, K = tokens(1, 5, 4)[0], tokens(1, 6, 4)[0] + 1
    A = SelfAttention(4, 1).weights(Q, K)
    for i in range(5):
        e = torch.stack([torch.exp(sum(Q[i] * K[j]) / 2) for j in range(6)])  # sqrt(4) = 2
        torch.testing.assert_close(A[i], e / e.sum())


def test_it_is_what_torch_computes():
    z, layer = tokens(), SelfAttention(8, heads=2)
    Q, K, V = layer.QKV(z).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    made = nn.functional.scaled_dot_product_attention(Q, K, V).transpose(1, 2).reshape(2, 5, 8)
    torch.testing.assert_close(layer(z)[0], layer.W_O(made))


def test_it_is_torchs_layer_with_the_same_weights_and_its_maps():
    z, layer, theirs = tokens(), SelfAttention(8, heads=2), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = layer.QKV.weight.data, layer.QKV.bias.data
    theirs.out_proj.load_state_dict(layer.W_O.state_dict())
    for ours, other in zip(layer(z), theirs(z, z, z, average_attn_weights=False), strict=True):
        torch.testing.assert_close(ours, other)


def test_tokens_that_change_places_change_places():
    z, layer, order = tokens(), SelfAttention(8, heads=2), torch.tensor([3, 0, 4, 1, 2])
    (made, A), (moved, B) = layer(z), layer(z[:, order])
    torch.testing.assert_close(moved, made[:, order])
    torch.testing.assert_close(B, A[:, :, order][:, :, :, order])


def test_a_block_is_torchs_encoder_layer_with_norms_first():
    z, block = tokens(), Block(8, heads=2)
    theirs = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs.self_attn.in_proj_weight.data, theirs.self_attn.in_proj_bias.data = block.MSA.QKV.parameters()
    theirs.self_attn.out_proj.load_state_dict(block.MSA.W_O.state_dict())
    theirs.linear1.load_state_dict(block.MLP[0].state_dict())
    theirs.linear2.load_state_dict(block.MLP[2].state_dict())
    for norm in (block.norm_1, block.norm_2):
        nn.init.normal_(norm.weight)
    theirs.norm1.load_state_dict(block.norm_1.state_dict())
    theirs.norm2.load_state_dict(block.norm_2.state_dict())
    torch.testing.assert_close(block(z)[0], theirs(z))


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="width 8 is not a multiple of heads 3"):
        SelfAttention(8, heads=3)


def test_patches_are_tokens_row_by_row_after_the_class_token():
    torch.manual_seed(0)
    model, x = VisionTransformer(1, 4, 6, classes=3, width=8, depth=2, heads=2), torch.rand(2, 1, 8, 12)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits, maps = model(x)
    assert logits.shape == (2, 3) and maps.shape == (2, 2, 2, 7, 7)
    torch.testing.assert_close(seen[0][:, 0], (model.x_class + model.E_pos[0]).expand(2, -1))
    for k, (row, column) in enumerate([(0, 0), (0, 4), (0, 8), (4, 0), (4, 4), (4, 8)]):
        patch = x[:, 0, row : row + 4, column : column + 4].flatten(1)
        token = patch @ model.E.weight.flatten(1).T + model.E.bias + model.E_pos[1 + k]
        torch.testing.assert_close(seen[0][:, 1 + k], token)
    z = seen[0]
    for number, block in enumerate(model.blocks):
        z, A = block(z)
        torch.testing.assert_close(maps[:, number], A)
    torch.testing.assert_close(logits, model.head(z[:, 0]))


def test_rollout_is_the_identity_mixed_product_coded_anew_and_rows_sum_to_1():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64).softmax(dim=-1)
    for n in range(2):
        first, second, third = (sum(maps[n, layer, h] for h in range(4)) / 8 + 0.5 * torch.eye(5) for layer in range(3))
        torch.testing.assert_close(rollout(maps)[n], third @ (second @ first))
    torch.testing.assert_close(rollout(maps).sum(dim=2), torch.ones(2, 5, dtype=torch.float64))


def test_rollout_by_hand():
    """The class token looks at token 1 in the second block, which looked at token 2 in the first."""
    maps = torch.eye(3).repeat(1, 2, 1, 1, 1)
    maps[0, 0, 0, 1] = torch.tensor([0.0, 0.0, 1.0])
    maps[0, 1, 0, 0] = torch.tensor([0.0, 1.0, 0.0])
    assert rollout(maps)[0].tolist() == [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]
