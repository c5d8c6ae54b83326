"""Reads the machine code of every kernel for sm_90a: matrix kernels must use the tensor cores (Hopper's own by warpgroups, fed by the
copy engine), the others 16-byte global loads.

usage: sass.py CUOBJDUMP FATBIN...    (nvdisasm beside cuobjdump)
"""
import os, pathlib, re, subprocess, sys

# Work of a few kilobytes: bound by latency, whatever the width of a load.
LATENCY = re.compile(r"advantage_|_finish_|decode_attention_combine_|_loss_|_tile_|rmsnorm_backward_dw_")
MATRIX = re.compile(r"decode_attention_hd|attention_(forward|backward_dq|backward_dkv)|grouped_logprob_(forward|grad)|gradient_cosine_(gram|ghost)_bf16")
HOPPER = re.compile(r"_hopper_(?!rows_)")


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


def problem(name, code):
    if LATENCY.search(name):
        return None
    if HOPPER.search(name):
        return None if re.search(r"\bHGMMA\.", code) and "UTMALDG" in code else "no HGMMA or no UTMALDG"
    if MATRIX.search(name):
        return None if re.search(r"\bH(G)?MMA\.", code) else "no HMMA or HGMMA"
    return None if re.search(r"\b(LDG|LDGSTS)\.E[\w.]*\.128", code) else "no 16-byte global load"


def main():
    cuobjdump, fatbins = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2:]
    checked, bad = 0, []
    for fatbin in fatbins:
        for name, code in kernels(cuobjdump, fatbin).items():
            checked += 1
            if what := problem(name, code):
                bad.append(f"{pathlib.Path(fatbin).stem}: {name}: {what}")
    print(f"{checked} kernels for sm_90a read", *bad, sep="\n")
    sys.exit(bool(bad) or not checked)


if __name__ == "__main__":
    main()
