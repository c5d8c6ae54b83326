#!/usr/bin/env python3
"""The shapes of `uncouple bench kernels|step|decode` in PyTorch, on one GPU: what our kernels are to beat.

Prints one JSON object: the device, its measured ceilings (copy bandwidth, bf16 matrix rate), and a row for each operation with
the median of many event-timed calls over rotating inputs larger than the L2 cache. Needs torch with CUDA, and transformers for
the whole-model rows; Liger's kernels are timed too if they can be imported. A row that fails says why and does not end the run.
usage: gpu_peers.py [--only NAME]... [--tiny]     (--tiny: shapes that a CPU runs in seconds, to try the script itself)
"""
import argparse, importlib.util, json, os, statistics, sys, time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

TINY = False
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = []
L2_BYTES = 128 << 20


def randn(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device=DEVICE, dtype=dtype)


def sync():
    if DEVICE == "cuda": torch.cuda.synchronize()


def seconds(calls, budget=1.0):
    """Median time of one call; `calls` are the same work on different inputs, taken in turn."""
    calls[0](); sync(); began = time.perf_counter()
    for call in calls[:3] * 3:
        call(); sync()
        if time.perf_counter() - began > 2 * budget: break
    began = time.perf_counter(); calls[0](); sync()
    n = max(5, min(200, int(budget / (time.perf_counter() - began + 1e-6))))
    times = []
    for i in range(n):
        call = calls[i % len(calls)]
        if DEVICE == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(); call(); end.record(); end.synchronize(); times.append(start.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter(); call(); times.append(time.perf_counter() - began)
    return statistics.median(times)


def row(name, peer, calls, flops=0.0, bytes=0.0, tokens=0):
    """`calls`: a function that makes the list of calls, so that its failure is this row's alone."""
    try:
        t = seconds(calls())
        r = {"name": name, "peer": peer, "seconds": t}
        if flops: r["tflops"] = flops / t / 1e12
        if bytes: r["gbps"] = bytes / t / 1e9
        if tokens: r["tokens_per_second"] = tokens / t
    except Exception as e:  # out of memory, a backend that is not there: the other rows still count
        r = {"name": name, "peer": peer, "error": f"{type(e).__name__}: {e}".splitlines()[0]}
    print(json.dumps(r), file=sys.stderr, flush=True)
    ROWS.append(r)
    if DEVICE == "cuda": torch.cuda.empty_cache()


def copies(bytes_each):
    return 2 if TINY else max(1, -(-L2_BYTES // bytes_each) + 1)


def ceilings():
    n = 1 << 20 if TINY else 1 << 30
    a, b = torch.empty(n, dtype=torch.uint8, device=DEVICE), torch.empty(n, dtype=torch.uint8, device=DEVICE)
    copy = 2 * n / seconds([lambda: b.copy_(a)]) / 1e9
    m = 256 if TINY else 8192
    x, y = randn(m, m), randn(m, m)
    return {"copy_gbps": copy, "matmul_tflops": 2 * m**3 / seconds([lambda: x @ y]) / 1e12}


def attention():
    total, hidden = (512, 256) if TINY else (16384, 2048)
    for head_dim in (64, 128):
        for length in ((128,) if TINY else (512, 1024, 2048, 4096, 8192)):
            heads, batch = hidden // head_dim, total // length
            flops = 4 * batch * heads * length**2 * head_dim / 2
            name = f"attention hd{head_dim} {batch}x{length}"
            for peer, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
                def forward():
                    sets = [[randn(batch, heads, length, head_dim) for _ in range(3)] for _ in range(2)]
                    def call(q, k, v):
                        with sdpa_kernel(backend): F.scaled_dot_product_attention(q, k, v, is_causal=True)
                    return [lambda s=s: call(*s) for s in sets]
                def backward():
                    def prepare():
                        q, k, v = (randn(batch, heads, length, head_dim).requires_grad_() for _ in range(3))
                        with sdpa_kernel(backend): o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                        d = torch.randn_like(o)
                        return lambda: torch.autograd.grad(o, (q, k, v), d, retain_graph=True)
                    return [prepare() for _ in range(2)]
                row(f"{name} forward", peer, forward, flops=flops)
                row(f"{name} backward", peer, backward, flops=2.5 * flops)


def memory_bound():
    rows, hidden, ffn = (64, 256, 704) if TINY else (16384, 2048, 11008)

    def forward_backward(name, f, inputs, forward_bytes, backward_bytes):
        f = torch.compile(f)
        size = sum(x.numel() * 2 for x in inputs())
        def forward():
            sets = [inputs() for _ in range(copies(size))]
            def call(s):
                with torch.no_grad(): f(*s)
            return [lambda s=s: call(s) for s in sets]
        def backward():
            def prepare():
                s = [x.requires_grad_() for x in inputs()]
                y = f(*s); d = torch.randn_like(y)
                return lambda: torch.autograd.grad(y, s, d, retain_graph=True)
            return [prepare() for _ in range(copies(size))]
        row(f"{name} forward", "torch.compile", forward, bytes=forward_bytes)
        row(f"{name} backward", "torch.compile", backward, bytes=backward_bytes)

    forward_backward(f"rmsnorm {rows}x{hidden}", lambda x, w: F.rms_norm(x, (hidden,), w, 1e-6),
                     lambda: [randn(rows, hidden), randn(hidden)], 4 * rows * hidden, 6 * rows * hidden)
    forward_backward(f"swiglu {rows}x{ffn}", lambda gate, up: F.silu(gate) * up,
                     lambda: [randn(rows, ffn), randn(rows, ffn)], 6 * rows * ffn, 10 * rows * ffn)

    n = 1 << 16 if TINY else 494_000_000
    def adamw():
        p = torch.nn.Parameter(randn(n, dtype=torch.float32)); p.grad = torch.randn_like(p)
        return [torch.optim.AdamW([p], lr=1e-4, fused=True).step]
    row(f"adamw {n}", "torch fused, f32 gradient", adamw, bytes=28 * n)


def grouped_logprob():
    for hidden in ((64,) if TINY else (896, 1536, 2048)):
        tokens, vocab = (64, 1024) if TINY else (4096, 151936)
        def loss(h, w, t): return F.cross_entropy((h @ w.T).float(), t)
        def inputs():
            return randn(tokens, hidden), randn(vocab, hidden), torch.randint(0, vocab, (tokens,), device=DEVICE)
        def forward():
            f = torch.compile(loss); h, w, t = inputs()
            def call():
                with torch.no_grad(): f(h, w, t)
            return [call]
        def full():
            f = torch.compile(loss); h, w, t = inputs(); h.requires_grad_(); w.requires_grad_()
            return [lambda: torch.autograd.grad(f(h, w, t), (h, w))]
        flops, name = 2 * tokens * hidden * vocab, f"grouped_logprob {tokens}x{hidden}x{vocab}"
        row(f"{name} forward", "torch.compile", forward, flops=flops)
        row(f"{name} forward+backward", "torch.compile", full, flops=3 * flops)
        if importlib.util.find_spec("liger_kernel"):
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
            def liger():
                f = LigerFusedLinearCrossEntropyLoss(); h, w, t = inputs(); h.requires_grad_(); w.requires_grad_()
                return [lambda: torch.autograd.grad(f(w, h, t), (h, w))]
            row(f"{name} forward+backward", "liger", liger, flops=3 * flops)


# layers, hidden, heads, kv heads, head_dim, ffn: Qwen2.5's shapes with random weights.
SHAPES = {"0.5B": (24, 896, 14, 2, 64, 4864), "1.5B": (28, 1536, 12, 2, 128, 8960), "3B": (36, 2048, 16, 2, 128, 11008)}


def qwen2(name):
    from transformers import Qwen2Config, Qwen2ForCausalLM
    layers, hidden, heads, kv, head_dim, ffn = (2, 128, 2, 1, 64, 256) if TINY else SHAPES[name]
    config = Qwen2Config(vocab_size=512 if TINY else 151936, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
                         num_key_value_heads=kv, head_dim=head_dim, intermediate_size=ffn, tie_word_embeddings=True,
                         max_position_embeddings=32768, attn_implementation="sdpa")
    return Qwen2ForCausalLM(config).to(DEVICE, torch.bfloat16)


def training_step():
    """One optimiser step on 16k tokens. The loss needs its logits whole, so a step takes its sequences in `parts` backward passes
    of equal size when they do not fit at once. Pure bf16 states, where ours are f32: the peer moves fewer bytes."""
    batch, length = (2, 32) if TINY else (16, 1024)
    for name in list(SHAPES)[:1] if TINY else SHAPES:
        for recompute in (False, True):
            for parts in (2,) if TINY else (1, 2, 4, 8, 16):
                def step():
                    model = qwen2(name)
                    if recompute: model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                    model.train(); compiled = torch.compile(model)
                    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
                    ids = torch.randint(0, model.config.vocab_size, (batch, length), device=DEVICE)
                    def call():
                        for part in ids.chunk(parts): (compiled(input_ids=part, labels=part, use_cache=False).loss / parts).backward()
                        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                        optimiser.step(); optimiser.zero_grad(set_to_none=True)
                    return [call]
                how = f", recomputing, in {parts}" if recompute else f", in {parts}"
                row(f"step {name} {batch}x{length}", f"HF sdpa + torch.compile{how}", step, tokens=batch * length)
                if DEVICE == "cuda": torch.compiler.reset()
                if "error" not in ROWS[-1]: break


def decode():
    """Sampled at temperature 1; a call of one new token is the prompts' share."""
    prompt, new = (16, 4) if TINY else (1024, 64)
    for batch in (2, 3) if TINY else (64, 256):
        for n in (1, new):
            def generate():
                model = qwen2("0.5B").eval()
                ids = torch.randint(0, model.config.vocab_size, (batch, prompt), device=DEVICE)
                def call():
                    with torch.inference_mode():
                        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n, do_sample=True, temperature=1.0,
                                       top_k=0, pad_token_id=0)
                return [call]
            row(f"decode 0.5B {batch}x{prompt}+{n}", "HF generate", generate, tokens=batch * n)


def decode_attention():
    """The last token of each sequence over a cache that lies in one piece; eight query heads to a kv head."""
    batch, context = (2, 33) if TINY else (256, 1024)
    for head_dim in (64, 128):
        for peer, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
            def forward():
                q, k, v = randn(batch, 16, 1, head_dim), randn(batch, 2, context, head_dim), randn(batch, 2, context, head_dim)
                def call():
                    with sdpa_kernel(backend): F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
                return [call]
            row(f"decode_attention hd{head_dim} {batch}x{context}", peer, forward, bytes=8 * batch * context * head_dim)


GROUPS = {f.__name__: f for f in (attention, decode_attention, memory_bound, grouped_logprob, training_step, decode)}


def main():
    global TINY
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=GROUPS, help="this group of rows (may be repeated)")
    parser.add_argument("--tiny", action="store_true", help="shapes that a CPU runs in seconds")
    args = parser.parse_args()
    TINY = args.tiny
    if DEVICE == "cpu" and not TINY:
        sys.exit("gpu_peers.py: torch sees no GPU; --tiny tries the script on a CPU")
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    report = {"device": name, "torch": torch.__version__, "ceilings": ceilings()}
    for group in args.only or GROUPS:
        GROUPS[group]()
    print(json.dumps({**report, "rows": ROWS}, indent=1))


if __name__ == "__main__":
    main()
