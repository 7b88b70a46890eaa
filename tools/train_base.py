#!/usr/bin/env python3
"""Trains the bundled base model (assets/tiny-base) on the prose of make_corpus.py and writes it as a Hugging Face folder.

Needs torch, transformers, tokenizers and safetensors. Reproducible from its seed on one machine with one thread count:
  python3 tools/train_base.py --out assets/tiny-base
"""
import argparse
import json
import math
import pathlib
import sys
import time

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from make_corpus import documents  # noqa: E402

END = "<|endoftext|>"
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1024, "hidden_size": 192,
    "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 32, "max_position_embeddings": 512, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
    "initializer_range": 0.04, "bos_token_id": 0, "eos_token_id": 0, "use_cache": True, "torch_dtype": "float16",
}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def train_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], special_tokens=[END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return tokenizer


def coarse(tokenizer, merges):
    """The same vocabulary with only the first so many merges: it spells words in smaller pieces."""
    table = json.loads(tokenizer.to_str())
    table["model"]["merges"] = table["model"]["merges"][:merges]
    return Tokenizer.from_str(json.dumps(table))


def encode_all(tokenizer, texts, coarse_share=0.0):
    """The ids of each document, closed by END, shuffled. A share of the documents is cut into smaller pieces, so that
    the pieces which spell words of no story get trained too."""
    kinds = [coarse(tokenizer, merges) for merges in (32, 96, 192, 384)]
    cut = int(len(texts) * coarse_share) // len(kinds)
    ids = [e.ids for e in tokenizer.encode_batch(texts[cut * len(kinds):])]
    for i, kind in enumerate(kinds):
        ids += [e.ids for e in kind.encode_batch(texts[i * cut:(i + 1) * cut])]
    return [ids[i] + [0] for i in torch.randperm(len(ids)).tolist()]


def batches(rows, size):
    """Batches of whole documents, one a row: a story beside others in its row would teach to mix their facts up.
    Documents of similar length go together, for less padding."""
    made = []
    for start in range(0, len(rows), 16 * size):
        near = sorted(rows[start:start + 16 * size], key=len)
        made += [near[i:i + size] for i in range(0, len(near), size)]
    return [made[i] for i in torch.randperm(len(made)).tolist()]


def learning_rate(step, steps, peak):
    warm = 50
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))))


def loss_of(model, documents_ids):
    rows = [torch.tensor(ids) for ids in documents_ids]
    inputs = torch.nn.utils.rnn.pad_sequence([row[:-1] for row in rows], batch_first=True)
    targets = torch.nn.utils.rnn.pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=-100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(inputs).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def train(model, rows, held_out, args):
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                                  betas=(0.9, 0.95))
    start = time.monotonic()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        loss = loss_of(model, rows[step])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 0 or step + 1 == args.steps:
            with torch.no_grad():
                print(f"step {step:5d}  loss {loss.item():.4f}  held-out {loss_of(model, held_out).item():.4f}  "
                      f"{time.monotonic() - start:.0f} s", flush=True)


def save(model, tokenizer, out):
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().half().contiguous() for name, p in model.named_parameters()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "config.json", CONFIG)
    write_json(out / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
    write_json(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False, "add_bos_token": False,
        "bos_token": END, "eos_token": END, "clean_up_tokenization_spaces": False, "model_max_length": 512})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("assets/tiny-base"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    texts = documents(args.seed, args.steps * args.batch)
    tokenizer = train_tokenizer(texts[:20000])
    rows = batches(encode_all(tokenizer, texts, coarse_share=0.1), args.batch)
    held_out = encode_all(tokenizer, documents(args.seed + 1000, 200))
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(texts)} documents, "
          f"{sum(len(ids) for batch in rows for ids in batch)} tokens")
    train(model, rows, held_out, args)
    save(model, tokenizer, args.out)


if __name__ == "__main__":
    main()
