"""GRPO in plain PyTorch on a model of transformers; the lines marked `# probe` measure it.

    python docs/examples/grpo_loop.py [RUN_DIR]

The model is made on the spot and learns to repeat the first digit of a prompt.
"""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from entropy_lab import Probe, TokenBatch, token_stats  # probe

P, T, GROUPS, G = 4, 3, 8, 8  # prompt and response length, prompts a step, responses a prompt
DIGITS, STEPS, EPOCHS, MICRO = 10, 40, 2, 32  # optimizer steps = STEPS * EPOCHS
run_dir = sys.argv[1] if len(sys.argv) > 1 else "runs/grpo_loop"

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=DIGITS, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=P + T,
    )  # fmt: skip
)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)


def score(ids):  # (B, P+T) -> statistics of the T response tokens
    return token_stats(model(ids).logits[:, P - 1 : -1], ids[:, P:])


def sample(prompts):  # (B, P) -> (B, P+T)
    ids = prompts
    for _ in range(T):
        probs = model(ids).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probs, 1)], dim=1)
    return ids


probe = Probe(model, optimizer, run_dir, score)  # probe
for step in range(STEPS):
    with torch.no_grad():
        ids = sample(torch.randint(DIGITS, (GROUPS, P)).repeat_interleave(G, 0))
        reward = (ids[:, P:] == ids[:, :1]).float().mean(1)  # (B,)
        groups = reward.view(GROUPS, G)
        advantage = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
        advantage = advantage.view(-1, 1).expand(-1, T)  # (B, T)
        old_logp, mask = score(ids).logp, torch.ones_like(ids[:, P:]).bool()
    for _ in range(EPOCHS):
        for rows in torch.arange(len(ids)).split(MICRO):
            mine = ids[rows]
            batch = TokenBatch(mine[:, P:], mask[rows], advantage[rows], old_logp[rows])  # probe
            stats = probe.record(mine, batch)  # probe, in place of score(mine)
            ratio = torch.exp(stats.logp - old_logp[rows])
            clipped = ratio.clamp(0.8, 1.2)
            gain = torch.minimum(ratio * advantage[rows], clipped * advantage[rows])
            (-gain.mean() * len(rows) / len(ids)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if step % 10 == 0:
        print(f"step {step}: reward {reward.mean():.3f}")
probe.close()  # probe
