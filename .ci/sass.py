"""Reads the machine code of every kernel for sm_90a. Matrix kernels must use the tensor cores (Hopper's own by warpgroups, fed by the copy
engine), the others 16-byte global loads. In the main loops of Hopper's attention and head, exponentials must overlap with products and
none may branch.

usage: sass.py CUOBJDUMP FATBIN...    (nvdisasm beside cuobjdump)
"""
import os, pathlib, re, subprocess, sys

# Work of a few kilobytes: bound by latency, whatever the width of a load.
LATENCY = re.compile(r"advantage_|_finish_|decode_attention_combine_|_loss_|_tile_|rmsnorm_backward_dw_")
MATRIX = re.compile(r"decode_attention_(tiled_)?hd|attention_(forward|backward_dq|backward_dkv)|grouped_logprob_(forward|grad)|gradient_cosine_(gram|ghost)_bf16")
HOPPER = re.compile(r"_hopper_(?!rows_)")

# Of the innermost loop with products: how many there are, the exponentials, and the most branches. All of the exponentials come between
# the first wait for a product and the second: while another is under way.
LOOPS = {
    "attention_hopper_forward_hd64_bf16": (12, 66, 8),
    "attention_hopper_forward_hd128_bf16": (16, 66, 8),
    "attention_backward_hopper_kv_hd64_bf16": (16, 32, 9),
    "attention_backward_hopper_kv_hd128_bf16": (24, 32, 9),
    "attention_backward_hopper_q_hd64_bf16": (12, 32, 14),
    "attention_backward_hopper_q_hd128_bf16": (20, 32, 14),
}


def kernels(cuobjdump, fatbin):
    path = f"{cuobjdump.parent}{os.pathsep}{os.environ['PATH']}"
    sass = subprocess.run([cuobjdump, "-sass", fatbin], capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}).stdout
    arch = name = None
    found = {}
    for line in sass.splitlines():
        if m := re.match(r"\s*arch = (\w+)", line):
            arch = m[1]
        elif m := re.match(r"\s*Function : (\w+)", line):
            name = m[1]
        elif arch == "sm_90a" and name:
            found.setdefault(name, []).append(line)
    return {name: "\n".join(lines) for name, lines in found.items()}


def main_loop(code):
    """The instructions of the shortest loop that has as many products as any that holds no other loop with products."""
    instructions = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", code)
    at = {int(address, 16): i for i, (address, _) in enumerate(instructions)}
    loops = []
    for i, (_, text) in enumerate(instructions):
        if m := re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text):
            start = at.get(int(m[1], 16), i)
            body = [text for _, text in instructions[start : i + 1]]
            if start < i and (products := sum("HGMMA" in line for line in body)):
                loops.append((len(body), -products, body))
    return min(loops)[2] if loops else []


def loop_problem(name, code):
    products, exponentials, branches = LOOPS[name]
    body = main_loop(code)
    found = [sum(bool(re.search(what, line)) for line in body) for what in ("HGMMA", r"MUFU\.EX2", r"\bBRA\b")]
    waits = [i for i, line in enumerate(body) if "WARPGROUP.DEPBAR" in line] + [0, 0]
    hidden = sum("MUFU.EX2" in line for line in body[waits[0] : waits[1]])
    if found[:2] != [products, exponentials] or found[2] > branches or hidden < exponentials:
        return (f"the main loop has {found[0]} products, {found[1]} exponentials ({hidden} of them between waits) and {found[2]} branches; "
                f"should be {products}, {exponentials} (all) and at most {branches}")
    return None


def problem(name, code):
    if LATENCY.search(name):
        return None
    if name in LOOPS and (what := loop_problem(name, code)):
        return what
    if HOPPER.search(name):
        return None if re.search(r"\bHGMMA\.", code) and "UTMALDG" in code else "no HGMMA or no UTMALDG"
    if MATRIX.search(name):
        return None if re.search(r"\bH(G)?MMA\.", code) else "no HMMA or HGMMA"
    return None if re.search(r"\b(LDG|LDGSTS)\.E[\w.]*\.128", code) else "no 16-byte global load"


def main():
    cuobjdump, fatbins = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2:]
    checked, bad = set(), []
    for fatbin in fatbins:
        for name, code in kernels(cuobjdump, fatbin).items():
            checked.add(name)
            if what := problem(name, code):
                bad.append(f"{pathlib.Path(fatbin).stem}: {name}: {what}")
    bad += [f"{name}: no such kernel" for name in LOOPS if name not in checked]
    print(f"{len(checked)} kernels for sm_90a read", *bad, sep="\n")
    sys.exit(bool(bad) or not checked)


if __name__ == "__main__":
    main()
