"""What compiles for a simulated Ascend card: the table of docs/ascend.md, made anew.

    python scripts/ascend_table.py RESULTS [--only TEXT] [--workers 1]

RESULTS is a file of JSON lines. What is in it already is not compiled again, so that the script can be stopped; delete
it after a change of the code. x86-64 Linux with g++ and binutils, and about a minute of one core for each row.
"""

import argparse
import json
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "ascend"))

from compile_one import NARROW, compile_one  # noqa: E402
from stand_ins import build, obstacle  # noqa: E402

PRECISIONS = ("float32", "float16", "bfloat16")
MARKS = "<!-- made by scripts/ascend_table.py -->", "<!-- end -->"
HEAD = ["network", "graph", "precision", "ranks", "switches", "compiled", "kernels", "MiB"]


def cells():
    """(network, graph, precision, ranks, switches, whether it is narrowed), what differs most first."""
    sharded = "accumulation=2 recompute=1 shard_optimizer=true"
    for ranks, switches in ((1, ""), (8, sharded), (1, "accumulation=2"), (8, "")):
        for precision in PRECISIONS:
            yield "palette_62m", "train", precision, ranks, switches, True
    for switches in ("", "guidance=2 dynamic_threshold=0.995", "reuse=2", "tile=16"):
        for precision in PRECISIONS:
            yield "palette_62m", "sample", precision, 1, switches, True
    for graph in ("train", "sample"):
        yield "palette_62m", graph, "float16", 1, "jit_level=O1", True
    for precision in PRECISIONS:
        yield "palette_paper", "train", precision, 8, "accumulation=2 recompute=2 shard_optimizer=true", True
    for name in ("quickstart", "photo", "multitask_small", "quickstart_distill"):
        for precision in PRECISIONS:
            yield name, "train", precision, 1, "", False
    for switches in ("attention=local attention_blocks=2", "attention=none", "attention=dilated"):
        yield "palette_paper", "train", "float16", 1, f"{switches} accumulation=1", True
    for process in ("resshift", "i2sb"):
        for graph in ("train", "sample"):
            yield "photo", graph, "float16", 1, f"process={process}", False
    for precision in PRECISIONS:
        yield "photo", "train", precision, 1, "lora.rank=8 init_from=start.safetensors", False
    yield "photo", "sample", "float16", 1, "flips=4", False
    for precision in PRECISIONS:
        yield "quickstart", "sample", precision, 1, "", False
    for precision in PRECISIONS:
        yield "shapes_base", "train", precision, 1, "", False
    yield "shapes_base", "sample", "float16", 1, "guidance=3", False
    for graph in ("train", "sample"):
        yield "imagen_sr_256", graph, "bfloat16", 1, "res_blocks=[0,1] text_channels=64 text_length=8", True
    yield "refiner_small", "train", "float32", 1, "", False
    for name in ("celebahq_inpainting", "places2_inpainting", "places2_uncropping", "imagenet_colorization",
                 "imagenet_jpeg", "imagenet_multitask"):
        yield name, "train", "float16", 1, "", True


def compile_cell(cell, stand_ins):
    """The row of a cell."""
    name, graph, precision, ranks, switches, narrowed = cell
    sections = {"attention": "model", "res": "model", "text": "model", "process": "diffusion"}
    usual = {"train": "training", "sample": "sampling"}[graph]
    words = [f"{sections.get(re.match('[a-z]+', word)[0], usual)}.{word}" for word in switches.split()]
    outcome = compile_one(graph, ROOT / "configs" / f"{name}.yaml",
                          [*(NARROW if narrowed else ()), f"training.precision={precision}", *words], stand_ins, ranks)
    return {"cell": list(cell), "error": outcome.error, "kernels": sum(outcome.kernels.values()),
            "types": dict(outcome.kernels.most_common()), "memory": outcome.memory, "seconds": outcome.seconds}


def table(rows):
    """Markdown."""
    lines = [" | ".join(HEAD), " | ".join(["---"] * len(HEAD))]
    for row in rows:
        name, graph, precision, ranks, switches, narrowed = row["cell"]
        came = [f"**no**: {row['error']}", "", ""] if row["error"] else [
            "yes", str(row["kernels"]), f"{row['memory'] / 2**20:.0f}"]
        lines.append(" | ".join([f"{name}{', narrowed' if narrowed else ''}", graph, precision, str(ranks),
                                 f"`{switches}`" if switches else "", *came]))
    return "\n".join(f"| {line} |" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", default="", help="rows alone that hold this text")
    parser.add_argument("--workers", type=int, default=1, help="compiled at once")
    args = parser.parse_args()
    if obstacle():
        sys.exit(f"error: {obstacle()}")
    known = {}
    if args.results.exists():
        known = {tuple(row["cell"]): row for row in map(json.loads, args.results.read_text().splitlines())}

    def work(cell):
        known[cell] = row = compile_cell(cell, stand_ins)
        print(f"{' '.join(map(str, cell[:5]))}: {row['error'] or row['kernels']}", file=sys.stderr)
        with open(args.results, "a") as file:
            file.write(json.dumps(row) + "\n")

    with tempfile.TemporaryDirectory() as stand_ins, ThreadPoolExecutor(args.workers) as pool:
        build(stand_ins)
        list(pool.map(work, [cell for cell in cells() if cell not in known and args.only in str(cell)]))
    path, (begin, end) = ROOT / "docs" / "ascend.md", MARKS
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    rows = [known[cell] for cell in cells() if cell in known]
    path.write_text(f"{before}{begin}\n{table(rows)}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
    sys.exit(any(row["error"] for row in rows))


if __name__ == "__main__":
    main()
