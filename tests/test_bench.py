#!/usr/bin/env python3
"""qlora-bench step: its figures agree with each other and with a count of the operations made here."""
import json
import subprocess
import sys

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

words = run("step", "--shape", "stories260k", "--seq", "16", "--runs", "1", "--threads", "1", "--compute", "bf16")
assert "tokens/s" in words and "matmul backward" in words and "peak resident" in words, words
run("step", "--shape", "no-such-model", status=2)
run("step", "--seq", "0", status=2)
run("nonsense", status=2)
assert "kernels" in run("matmul", "--list")
