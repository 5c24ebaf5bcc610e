"""Changes to the model and its training that are no options of the library.

Experiments and ablations name one of `VARIATIONS`: inside `with varied(NAME):` a run
trains, is validated and tells stories with it.
"""
import contextlib
import math
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

import piny.attention
import piny.decoder
import piny.model
import piny.training
from piny.attention import Attention, causal_attention
from piny.model import Block, Piny
from piny.rmsnorm import RMSNorm
from piny.rope import apply_rope


class LayerNorm(nn.LayerNorm):
    "Mean subtracted, with a bias (Ba et al., 2016), in the place of RMSNorm."

    def __init__(self, dim, eps):
        super().__init__(dim, eps)


class NoNorm(nn.Module):
    "Nothing in the place of RMSNorm."

    def __init__(self, dim, eps):
        super().__init__()

    def forward(self, x):
        return x


class PlainFeedForward(nn.Module):
    "Two matrices without a gate, with as many weights as the gated three."

    activation = staticmethod(F.relu)

    def __init__(self, dim, hidden_dim):
        super().__init__()
        self.up_proj = nn.Linear(dim, hidden_dim * 3 // 2, bias=False)
        self.down_proj = nn.Linear(hidden_dim * 3 // 2, dim, bias=False)

    def forward(self, x):
        return self.down_proj(self.activation(self.up_proj(x)))


class GeluFeedForward(PlainFeedForward):
    "The same with GELU (Hendrycks and Gimpel, 2016)."

    activation = staticmethod(F.gelu)


class PostNormBlock(Block):
    "Norms after each sum, as in the first Transformer (Vaswani et al., 2017)."

    def forward(self, x, cos, sin, attend=causal_attention):
        x = self.input_layernorm(x + self.self_attn(x, cos, sin, attend))
        return self.post_attention_layernorm(x + self.mlp(x))


class DropoutBlock(Block):
    "A share of what each layer adds is left out while training (Srivastava et al., 2014)."

    rate = 0.1

    def forward(self, x, cos, sin, attend=causal_attention):
        attention = self.self_attn(self.input_layernorm(x), cos, sin, attend)
        x = x + F.dropout(attention, self.rate, self.training)
        added = self.mlp(self.post_attention_layernorm(x))
        return x + F.dropout(added, self.rate, self.training)


class QKNormAttention(Attention):
    "Queries and keys are normed, head by head (Henry et al., 2020)."

    def __init__(self, *args):
        super().__init__(*args)
        self.q_norm, self.k_norm = RMSNorm(self.head_dim), RMSNorm(self.head_dim)

    def forward(self, x, cos, sin, attend=causal_attention):
        q = self.q_norm(self.split_heads(self.q_proj(x)))
        k = self.k_norm(self.split_heads(self.k_proj(x)))
        v = self.split_heads(self.v_proj(x))
        heads = attend(apply_rope(q, cos, sin), apply_rope(k, cos, sin), v)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class ValueResidualAttention(Attention):
    "Values are mixed with those of the first layer (Zhou et al., 2024)."

    first_values = None  # of the batch that is computed

    def __init__(self, *args):
        super().__init__(*args)
        self.share = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x, cos, sin, attend=causal_attention):
        q = apply_rope(self.split_heads(self.q_proj(x)), cos, sin)
        k = apply_rope(self.split_heads(self.k_proj(x)), cos, sin)
        v = self.split_heads(self.v_proj(x))
        if getattr(self, 'is_first', False):
            ValueResidualAttention.first_values = v
        v = v.lerp(ValueResidualAttention.first_values, self.share.to(v.dtype))
        heads = attend(q, k, v)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class ValueResidualBlock(Block):
    "A block that knows whether it is the model's first."

    n_made = 0

    def __init__(self, config):
        super().__init__(config)
        self.self_attn.is_first = ValueResidualBlock.n_made % config.n_layers == 0
        ValueResidualBlock.n_made += 1


class LearnedPositions(nn.Embedding):
    "An embedding that adds a learned vector for each place in the window."

    N_PLACES = 512

    def __init__(self, vocab_size, dim):
        super().__init__(vocab_size, dim)
        self.places = nn.Parameter(torch.zeros(self.N_PLACES, dim))

    def forward(self, ids):
        return super().forward(ids) + self.places[:ids.shape[1]]


def without_rotation(x, cos, sin):
    "What RoPE would do if it did nothing."
    return x


def loss_from_logits(of_logits):
    "`Piny.forward` with a loss of the whole logits (N, V) and targets (N,)."
    def forward(self, ids, targets=None, positions=None, doc_ids=None):
        logits = self.logits(self.states(ids, positions, doc_ids))
        if targets is None:
            return logits
        return of_logits(logits.flatten(0, 1), targets.flatten())
    return forward


def z_loss(logits, targets):
    "Cross-entropy, and a little of the squared logsumexp (Chowdhery et al., 2022)."
    return F.cross_entropy(logits, targets) + 1e-4 * logits.logsumexp(-1).square().mean()


def capped_logits(self, states):
    "Logits inside -30 … 30 (Gemma 2, 2024)."
    scores = F.linear(states, self.output_weight).float()
    return 30 * torch.tanh(scores / 30)


def unscaled_weights(model, std, n_layers):
    "First weights of one size, also where a layer writes to the stream."
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2 and not weight.is_meta:
                weight.normal_(0, std)


def small_steps_first(trainer):
    """`accumulate_gradients`, whose batch grows: a quarter, a half, then the whole.

    In the first quarter of a run each of a batch's four micro-batches makes a step of its
    own, in the second quarter two do; the rate follows the root of the batch.
    """
    progress, whole = trainer.state.step / trainer.config.max_steps, trainer.accumulations
    together = 1 if progress < 0.25 else 2 if progress < 0.5 else whole
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    for group in groups:
        group['lr'] *= math.sqrt(together / whole)
    total = torch.zeros(())
    for n in range(1, whole + 1):
        loss = piny.training.micro_batch_loss(trainer)  # its share of the whole batch
        (loss * whole / together).backward()
        total = total + loss.detach()
        if n % together == 0 and n < whole:  # the last step is the caller's
            torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.config.clip)
            for optimizer in trainer.optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return total


plain_pause = piny.training.pause


@torch.no_grad()
def pause_with_average(trainer):
    "`pause`, which validates and saves a running mean of the weights of some ten steps."
    weights = list(trainer.model.parameters())
    trained = [weight.clone() for weight in weights]
    if not hasattr(trainer, 'average'):
        trainer.average = trained
    trainer.average = [torch.lerp(*pair, 0.1) for pair in zip(trainer.average, trained)]
    torch._foreach_copy_(weights, trainer.average)
    goes_on = plain_pause(trainer)
    if goes_on:
        torch._foreach_copy_(weights, trained)
    return goes_on


def patch(target, name, new):
    "One attribute in the place of another."
    return mock.patch.object(target, name, new)


VARIATIONS = {
    'layernorm': [patch(piny.model, 'RMSNorm', LayerNorm)],
    'no-norm': [patch(piny.model, 'RMSNorm', NoNorm)],
    'relu': [patch(piny.model, 'SwiGLU', PlainFeedForward)],
    'gelu': [patch(piny.model, 'SwiGLU', GeluFeedForward)],
    'post-norm': [patch(piny.model, 'Block', PostNormBlock)],
    'dropout': [patch(piny.model, 'Block', DropoutBlock)],
    'no-positions': [patch(piny.attention, 'apply_rope', without_rotation)],
    'learned-positions': [patch(piny.attention, 'apply_rope', without_rotation),
                          patch(piny.model, 'new_embedding', LearnedPositions)],
    'qk-norm': [patch(piny.model, 'Attention', QKNormAttention)],
    'value-residual': [patch(piny.model, 'Attention', ValueResidualAttention),
                       patch(piny.model, 'Block', ValueResidualBlock)],
    'z-loss': [patch(Piny, 'forward', loss_from_logits(z_loss))],
    'soft-cap': [patch(Piny, 'forward', loss_from_logits(F.cross_entropy)),
                 patch(Piny, 'logits', capped_logits)],
    'growing-batch': [patch(piny.training, 'accumulate_gradients', small_steps_first)],
    'averaged-weights': [patch(piny.training, 'pause', pause_with_average)],
    'unscaled-weights': [patch(piny.model, 'init_weights', unscaled_weights)],
}


@contextlib.contextmanager
def varied(name):
    "Inside, the library is varied; `None` leaves it as it is."
    with contextlib.ExitStack() as stack:
        if name is not None:
            for change in VARIATIONS[name]:
                stack.enter_context(change)
            # a decoder's own arrangement knows the plain model only
            stack.enter_context(patch(piny.decoder, 'is_plain', lambda model: False))
        yield


def check(name):
    "Does a varied model learn one batch, and is it told as it is trained?"
    from piny.decoder import Decoder
    from piny.model import ModelConfig
    with varied(name):
        torch.manual_seed(0)
        model = Piny(ModelConfig(vocab_size=64, dim=32, hidden_dim=64, n_layers=2,
                                 n_heads=2, n_kv_heads=1, context=32))
        ids = torch.randint(0, 64, (2, 16))
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(100):
            loss = model(ids[:, :-1], ids[:, 1:])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        decoder = Decoder(model)
        with torch.inference_mode():
            difference = (decoder.logits(decoder.states(ids)) - model(ids)).abs().max()
    assert loss < math.log(64) / 2 and difference < 1e-4, (name, loss, difference)
    return loss.item()


if __name__ == '__main__':
    for name in [None, *VARIATIONS]:
        print(f'{name or "plain":18} {check(name):.3f}')
