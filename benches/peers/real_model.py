#!/usr/bin/env python3
"""CPU speed of torch and transformers on a model directory, in f32 and bf16: peers of `uncouple bench WHAT --model DIR`.

Medians of three calls after one. The tokens are those that uncouple sees.
usage: real_model.py DIR train-step|generate|prefill|gradient-cosine
"""
import os, statistics, sys, time, warnings
os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false")
import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging as hfl
warnings.filterwarnings("ignore"); hfl.set_verbosity_error(); hfl.disable_progress_bar()
torch.set_num_threads(len(os.sched_getaffinity(0)))


def tokens(sequences, length):
    i, s = torch.arange(length), torch.arange(sequences)[:, None]
    return (7919 * i + 104729 * s) % 1000


def bench(name, fn):
    fn(); times = []
    for _ in range(3):
        t = time.perf_counter(); fn(); times.append(time.perf_counter() - t)
    print(f"{name:<48} {statistics.median(times) * 1e3:>10.1f} ms ", flush=True)


def load(dtype):
    return AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=dtype, attn_implementation="sdpa")


def train(name, dtype, autocast):
    m = load(dtype).train(); opt = torch.optim.AdamW(m.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for b, t in ((4, 256), (1, 2048)):
        if t > m.config.max_position_embeddings: continue
        ids = tokens(b, t)
        def step():
            opt.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast): loss = m(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward(); torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0); opt.step()
        bench(f"train {b}x{t} {name}", step)


def prefill(name, dtype):
    m = load(dtype).eval()
    for b, t in ((8, 128), (2, 4096)):
        if t > m.config.max_position_embeddings: continue
        ids = tokens(b, t)
        with torch.no_grad(): bench(f"prefill {b}x{t} {name}", lambda: m(input_ids=ids, use_cache=True, logits_to_keep=1))


def generate(name, dtype):
    m = load(dtype).eval()
    for b in (1, 8):
        ids = tokens(b, 64); gc = GenerationConfig(max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0, eos_token_id=None)
        bench(f"generate {b} x 64 {name}", lambda: m.generate(ids, attention_mask=torch.ones_like(ids), generation_config=gc))


def cosine(name, dtype):
    """One backward pass a sequence; the gradients are kept in `dtype`."""
    m = load(dtype).train(); ps = list(m.parameters()); ids = tokens(16, 256)
    def loop():
        g = torch.empty(16, sum(p.numel() for p in ps), dtype=dtype)
        for i in range(16):
            m.zero_grad(set_to_none=True)
            lp = m(input_ids=ids[i:i + 1], use_cache=False).logits[:, 127:-1].float().log_softmax(-1).gather(-1, ids[i:i + 1, 128:, None])
            (-lp.mean()).backward(); torch.cat([p.grad.flatten() for p in ps], out=g[i])
        g = torch.nn.functional.normalize(g, dim=1); return g @ g.T
    bench(f"cosine 16x256 {name}, loop", loop)


part = sys.argv[2]
if part == "train-step":
    train("HF f32", torch.float32, False); train("HF bf16 autocast", torch.float32, True); train("HF bf16", torch.bfloat16, False)
else:
    for name, dtype in (("HF f32", torch.float32), ("HF bf16", torch.bfloat16)):
        {"generate": generate, "prefill": prefill, "gradient-cosine": cosine}[part](name, dtype)
