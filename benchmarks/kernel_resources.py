"""Registers, spills and shared memory of the fused attention's kernels, compiled for GPUs that need not be there.

    python benchmarks/kernel_resources.py --write docs/benchmarks.md

Needs triton (`pip install triton`), whose compiler and assembler run without a GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # the kernels are to be compiled

import torch
import triton
from markdown import add_write_option, publish, table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ltg_mdlm.model import fused_attention

BUCKETS = 63
"""R of the published models"""
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""bytes that one program may use, by compute capability (CUDA C++ programming guide, table of technical features)"""
KERNELS = {
    "products": fused_attention._product_kernel,
    "forward": fused_attention._forward_kernel,
    "query_gradient": fused_attention._query_gradient_kernel,
    "key_gradient": fused_attention._key_gradient_kernel,
    "table_gradient": fused_attention._table_gradient_kernel,
}


def resources(
    name: str, width: int, dtype: torch.dtype, capability: int, visibility: bool
) -> tuple[int, int, int, int, int]:
    """Warps, registers of a thread, spilled bytes of a thread, shared memory in bytes, and tile of a kernel."""
    kernel = KERNELS[name]
    launch = fused_attention.launch_for(width, dtype, (capability // 10, capability % 10))
    warps, stages = getattr(launch, "products" if name == "table_gradient" else name)
    constants: dict[str, Any] = {
        "NUM_BUCKETS": BUCKETS,
        "R": BUCKETS + 1,
        "E": width,
        "TILE": launch.tile,
        "PRECISION": "ieee",
        "DROPOUT": True,
    }
    if not visibility:
        constants |= dict.fromkeys(("group_BX", "order_BX", "limit_BX"))
    pointers = {"seed": "*i64", **dict.fromkeys(("log_sum", "delta", "partial"), "*fp32"), "row_keys": "*i32"}
    signature, aligned = {}, {}
    for index, argument in enumerate(kernel.arg_names):
        if argument in constants:
            kind = "constexpr"
        elif argument in ("scale", "keep_scale"):
            kind = "fp32"
        elif "stride" in argument or argument in (
            "length", "columns", "tiles", "heads", "rows", "drop_below", "tiles_per_program",
        ):  # fmt: skip
            kind = "i32"
        elif re.search("_[BDR]", argument):
            kind = "*i32"
        else:
            kind = pointers.get(argument, "*bf16" if dtype == torch.bfloat16 else "*fp32")
        signature[argument] = kind
        if kind.startswith("*") or "stride" in argument or argument in ("length", "columns"):
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(n),): v for n, v in constants.items() if n in kernel.arg_names},
        attrs=aligned,
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages}
    )
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder, "kernel.ptx")
        code.write_text(compiled.asm["ptx"])
        architecture = f"-arch=sm_{capability}{'a' if capability == 90 else ''}"
        assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
        command: list[str | Path] = [assembler, "-v", architecture, code, "-o", Path(folder, "kernel.cubin")]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = int(re.findall(r"Used (\d+) registers", report)[0])
    spilled = int(re.findall(r"(\d+) bytes spill stores", report)[0])
    return warps, registers, spilled, int(compiled.metadata.shared), launch.tile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[32, 64, 128], help="widths of a head")
    add_write_option(parser)
    arguments = parser.parse_args()
    rows = []
    for capability in (90, 80):
        for dtype in (torch.bfloat16, torch.float32):
            for width in arguments.width:
                for name in KERNELS:
                    variants = [resources(name, width, dtype, capability, visibility) for visibility in (False, True)]
                    warps, registers, spilled, shared, tile = (max(pair) for pair in zip(*variants, strict=True))
                    # 65536 registers and 2048 threads per multiprocessor; registers are given out in eights
                    programs = min(
                        65536 // (-(-registers // 8) * 8 * 32 * warps), 64 // warps, SHARED_MEMORY[capability] // shared
                    )
                    numbers = (f"{tile} x {tile}", warps, registers, spilled, f"{shared / 1024:.1f}", programs)
                    rows.append([str(cell) for cell in (f"sm_{capability}", str(dtype)[6:], width, name, *numbers)])
                    print(*rows[-1], flush=True)
    header = (
        "GPU", "operands", "head width", "kernel", "tile", "warps", "registers", "spilled, bytes", "shared memory, KiB",
        "programs per multiprocessor",
    )  # fmt: skip
    text = f"triton {triton.__version__}, {BUCKETS} buckets, with dropout; of the kernels with and without visibility"
    publish("kernel_resources", f"{text}, the larger number.\n\n{table(header, rows)}", arguments.write)


if __name__ == "__main__":
    main()
