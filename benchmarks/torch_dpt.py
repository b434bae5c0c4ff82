"""DPT's network and update in PyTorch, written as one would: fused attention, fused AdamW. Imports torch."""

from collections.abc import Callable

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from icrl_jax.methods.dpt import Example
from icrl_jax.methods.supervised import OptimConfig
from icrl_jax.models.policy import Policy


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, num_heads: int, ffn_width: int):
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, ffn_width, bias=False)
        self.down = nn.Linear(ffn_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(B, T, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(o.transpose(1, 2).reshape(B, T, D))
        return x + self.down(functional.gelu(self.up(self.ffn_norm(x)), approximate="tanh"))


class Network(nn.Module):
    """The same function as a `Policy` without positions, with the same weights."""

    def __init__(self, policy: Policy):
        super().__init__()
        config = policy.body.config
        inputs, width = embedding(policy).shape
        self.embed = nn.Linear(inputs, width, bias=False)
        ffn_width = width * config.mlp_ratio
        self.blocks = nn.ModuleList(Block(width, config.num_heads, ffn_width) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, *policy.head.readout.shape, bias=False)
        self.load_state_dict(weights(policy))

    def forward(self, features: Tensor) -> Tensor:
        x = self.embed(features)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def embedding(policy: Policy) -> jax.Array:
    """What maps a transition to its only token."""
    return policy.embed.tokens[0].maps[0][...]


def weights(policy: Policy) -> dict[str, Tensor]:
    """The parameters of a `Policy`, or their gradients, under the names of a `Network`."""
    body, blocks = policy.body, policy.body.blocks
    norms = {"norm.": (body.norm.scale[...], body.norm.bias[...])}
    matrices = {"embed": embedding(policy), "head": policy.head.readout.out[...]}
    for i in range(body.config.num_layers):
        for name, norm in (("attention_norm", blocks.attention_norm), ("ffn_norm", blocks.ffn_norm)):
            norms[f"blocks.{i}.{name}."] = norm.scale[...][i], norm.bias[...][i]
        named = {"qkv": blocks.qkv, "out": blocks.out, "up": blocks.ffn.up, "down": blocks.ffn.down}
        matrices |= {f"blocks.{i}.{name}": weight[...][i] for name, weight in named.items()}
    weights = {f"{name}.weight": np.asarray(matrix).T for name, matrix in matrices.items()}
    weights |= {f"{name}weight": scale for name, (scale, _) in norms.items()}
    weights |= {f"{name}bias": bias for name, (_, bias) in norms.items()}
    return {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}


def tensors(batch: Example, num_actions: int) -> tuple[Tensor, Tensor]:
    """Tokens before the embedding, float32 [B, T + 1, 2 O + A + 1]: the query, then each transition; labels int [B]."""
    context = batch.context
    action = np.eye(num_actions, dtype=np.float32)[np.asarray(context.action)]
    seen = np.concatenate([context.obs, action, context.next_obs, np.asarray(context.feedback)[..., None]], axis=-1)
    query = np.zeros_like(seen[:, :1])
    query[:, 0, : batch.query_obs.shape[-1]] = batch.query_obs
    return torch.tensor(np.concatenate([query, seen], axis=1)), torch.tensor(np.asarray(batch.target_action)).long()


def loss(network: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the label after every prefix."""
    logits = network(inputs)
    labels = targets[:, None].expand(logits.shape[:2])
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def make_update(
    network: Network, batches: list[tuple[Tensor, Tensor]], optim: OptimConfig, compiled: bool = False
) -> Callable[[], None]:
    """One update on each of some ready batches."""
    options = {"betas": (0.9, optim.beta2), "weight_decay": optim.weight_decay}
    optimiser = torch.optim.AdamW(network.parameters(), lr=optim.learning_rate, fused=True, **options)
    loss_of_batch = torch.compile(loss) if compiled else loss

    def update() -> None:
        for inputs, targets in batches:
            optimiser.zero_grad(set_to_none=True)
            loss_of_batch(network, inputs, targets).backward()
            if optim.clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), optim.clip)
            optimiser.step()

    return update
