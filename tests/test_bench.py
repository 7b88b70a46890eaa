#!/usr/bin/env python3
"""qlora-bench: the figures of a step agree with each other and with a count of the operations made here; products and
their report have a row for each thing asked, and libraries that are not there have none."""
import json
import subprocess
import sys
import tempfile

BENCH = sys.argv[1]
HIDDEN, MLP, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 64, 172, 5, 8, 4, 8, 512
Q, KV = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
MATRICES = [(Q, HIDDEN), (KV, HIDDEN), (KV, HIDDEN), (HIDDEN, Q), (MLP, HIDDEN), (MLP, HIDDEN), (HIDDEN, MLP)]


def run(*options, status=0):
    done = subprocess.run([BENCH, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == status, (options, done.returncode, done.stderr)
    return done.stdout


def counted(seq, batch, rank, recomputed):
    """Operations by part, one product after another."""
    parts = dict.fromkeys(["matmul forward", "matmul backward", "attention", "adapters", "loss and head"], 0)
    for layer in range(LAYERS):
        times = 2 if layer < recomputed else 1
        for index, (n, k) in enumerate(MATRICES):
            dx = layer > 0 or index > 2
            parts["matmul forward"] += times * 2 * seq * batch * n * k
            parts["matmul backward"] += dx * 2 * seq * batch * n * k
            parts["adapters"] += 2 * seq * batch * rank * (times * (n + k) + n + n + k + dx * k)
        for _ in range(batch):
            pairs = sum(range(1, seq + 1))
            parts["attention"] += (times * 2 + 5) * 2 * pairs * Q
    parts["loss and head"] = 2 * 2 * seq * batch * VOCAB * HIDDEN
    return parts


for words, recomputed in (([], 0), (["--recompute"], LAYERS - 1), (["--recompute=2"], 2)):
    seq, batch, rank = 48, 2, 4
    text = run("step", "--shape", "stories260k", "--seq", str(seq), "--batch", str(batch), "--rank", str(rank),
               "--threads", "2", "--runs", "3", "--json", *words)
    result = json.loads(text)
    for name, operations in counted(seq, batch, rank, recomputed).items():
        assert result["parts"][name]["operations"] == operations, (name, operations, result["parts"][name])
    assert result["recompute"] == recomputed
    assert result["operations"] == sum(counted(seq, batch, rank, 0).values())
    assert all(part["seconds"] > 0 for part in result["parts"].values()), result["parts"]
    total = sum(part["seconds"] for part in result["parts"].values())
    assert result["seconds"] <= total + 1e-4 and total < 2 * result["seconds"] + 1e-3, (total, result["seconds"])
    assert result["low_s"] <= result["seconds"] <= result["high_s"]
    classes = ["weights", "adapters", "gradients", "optimizer", "activations", "workspace"]
    assert result["planned"] == sum(result[name] for name in classes)
    assert result["adapters"] == 6 * LAYERS * rank * sum(n + k for n, k in MATRICES)

lines = run("step", "--shape", "stories260k", "--seq", "16,2048", "--threads", "1,2", "--runs", "1", "--json").splitlines()
several = [json.loads(line) for line in lines]
assert [(r["seq"], r["threads"]) for r in several] == [(16, 1), (16, 2), (2048, 1), (2048, 2)]
for one, two in (several[:2], several[2:]):
    assert one["speedup"] == 1 and abs(two["speedup"] - one["seconds"] / two["seconds"]) < 0.05 * two["speedup"], (one, two)
    assert 0 < one["share"] and abs(one["gflops"] * one["seconds"] * 1e9 / one["operations"] - 1) < 0.02, one

words = run("step", "--shape", "stories260k", "--seq", "16", "--runs", "1", "--threads", "1", "--compute", "bf16")
assert "tokens/s" in words and "matmul backward" in words and "peak resident" in words, words
run("step", "--shape", "no-such-model", status=2)
run("step", "--seq", "0", status=2)
run("nonsense", status=2)
assert "kernels" in run("matmul", "--list")

ABSENT = ["--openblas", "/nowhere.so", "--onednn", "/nowhere.so", "--onnxruntime", "/nowhere.so"]


def rows(*options):
    """Lines of text and objects of JSON."""
    with tempfile.NamedTemporaryFile(mode="r", suffix=".json") as file:
        text = run(*options, *ABSENT, "--json", file.name)
        return text, [json.loads(line) for line in file]


text, found = rows("matmul", "--shape", "96x64", "--m", "1,20", "--threads", "1,2", "--runs", "2", "--seconds", "1e-4",
                   "--tier", "portable")
assert text.count("not found") == 7, text
assert {(r["op"], r["m"], r["threads"]) for r in found} == {
    (op, m, threads) for op in ("forward", "transposed") for m in (1, 20) for threads in (1, 2)}
for r in found:
    assert r["share"] > 0 and r["low_s"] <= r["median_s"] <= r["high_s"] and r["tries"] == 1, r
    assert abs(r["gflops"] * r["median_s"] * 1e9 - 2 * r["n"] * r["k"] * r["m"]) < 1e-3 * 2 * r["n"] * r["k"] * r["m"], r
    first = next(f for f in found if (f["op"], f["m"], f["threads"]) == (r["op"], r["m"], 1))
    assert abs(r["speedup"] - first["median_s"] / r["median_s"]) < 1e-3 * r["speedup"], r

text, found = rows("report", "--shape", "64x128,128x64", "--part", "3,7", "--runs", "1")
measured, means = [r for r in found if "tier" in r], [r for r in found if "mean_of" in r]
assert len(measured) == 2 + 2 * 4 and len(means) == 1 + 4, found
shares = [r["share"] for r in measured if r["m"] == 1]
assert abs(means[0]["share"] - (shares[0] * shares[1]) ** 0.5) < 1e-3, (means[0], shares)
assert all(r["to_dense"] == 0 and r["mean_of"] == 2 for r in means) and "to dense" not in text
assert "0 rows left out" in text, text
run("report", "--part", "99", status=2)

rows = [line.split() for line in run("regions", "1").splitlines() if line.split()[1] in ("ours", "OpenMP")]
assert [row[:2] for row in rows] == [["1", "ours"], ["1", "OpenMP"]], rows
run("regions", "2x", status=2)
