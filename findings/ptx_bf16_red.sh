#!/usr/bin/env bash
# ptxas and nvdisasm 13.5 (PyPI: nvidia-cuda-nvcc and nvidia-cuda-nvdisasm 13.5.37). Expected: PTX's
# red.global.add.noftz.bf16, which needs sm_90, is one instruction of the Hopper and Blackwell GPUs, as its two-value
# form is.
# Seen: for a single bfloat16 or float16 ptxas writes a loop: load, add, compare-and-swap, again if another thread was
# faster; on sm_90, sm_100 and sm_120 alike. Only pairs (bf16x2, v2.bf16) become one REDG.
# It matters because atomicAdd(__nv_bfloat16*) and Triton's atomic_add on bfloat16 emit this instruction: class-weight
# gradients gathered that way run loops that collide on popular classes. Add pairs, or add in float32.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nvidia-cuda-nvcc==13.5.37 nvidia-cuda-nvdisasm==13.5.37
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import pathlib
import re
import subprocess
import sysconfig

tools = pathlib.Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin")
ENTRY = """.visible .entry {name}(.param .u64 p) {{
.reg .b64 a; .reg .b{bits} v;
ld.param.u64 a, [p]; cvta.to.global.u64 a, a; ld.global.b{bits} v, [a];
red.global.add{kind} [a+8], {value}; ret; }}
"""
KINDS = {
    "bf16": (16, ".noftz.bf16", "v"),
    "f16": (16, ".noftz.f16", "v"),
    "bf16x2": (32, ".noftz.bf16x2", "v"),
    "v2_bf16": (16, ".noftz.v2.bf16", "{v, v}"),
    "f32": (32, ".f32", "v"),
}
code = "".join(ENTRY.format(name=n, bits=bits, kind=kind, value=value) for n, (bits, kind, value) in KINDS.items())
seen = {}
for target in ("sm_90", "sm_100", "sm_120"):
    pathlib.Path("red.ptx").write_text(f".version 8.8\n.target {target}\n.address_size 64\n{code}")
    subprocess.run([tools / "ptxas", f"-arch={target}", "red.ptx", "-o", "red.cubin"], check=True)
    listing = subprocess.run([tools / "nvdisasm", "red.cubin"], check=True, capture_output=True, text=True).stdout
    for section in re.split(r"\.section\s+\.text\.", listing)[1:]:
        name = section.split(",")[0]
        seen[target, name] = " ".join(re.findall(r"\b(?:REDG?|ATOMG?)\.[A-Z0-9.x]*", section))
        print(f"seen: {target} {name}: {seen[target, name]}")
wrong = [key for key, text in seen.items() if (".CAS" in text) != (key[1] in ("bf16", "f16"))]
raise SystemExit(0 if len(seen) == 15 and not wrong else 1)
PY
