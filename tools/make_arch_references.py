#!/usr/bin/env python3
"""Reference values of small models of every architecture, computed by transformers and PEFT: tests/data/arch/*.json.

The weights are a function of their names (see `numbers`), so that the tests make them again without torch. A file holds the
config.json, the tensors' shapes, token ids, logits, losses, and of each adapter's gradients the largest entry, some entries,
and the sum of all under signs that depend on their place.

    python3 tools/make_arch_references.py tests/data/arch     # torch, transformers, peft
"""
import json
import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

MASK = (1 << 64) - 1
TOKENS, RANK, ALPHA, SAMPLES = 40, 2, 4, 6
BASE = dict(vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, torch_dtype="float32")
GEMMA = dict(BASE, head_dim=12, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=10, sliding_window=7,
             rms_norm_eps=1e-6, attention_bias=False)
CONFIGS = {
    "llama": dict(BASE, model_type="llama", hidden_act="silu", rms_norm_eps=1e-5, rope_theta=10000.0,
                  tie_word_embeddings=False, rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "qwen2": dict(BASE, model_type="qwen2", hidden_act="silu", rms_norm_eps=1e-6, rope_theta=1000000.0,
                  tie_word_embeddings=True, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "mistral": dict(BASE, model_type="mistral", hidden_act="silu", rms_norm_eps=1e-5, rope_theta=10000.0,
                    sliding_window=11, tie_word_embeddings=False),
    "gemma2": dict(GEMMA, model_type="gemma2", rope_theta=10000.0, attn_logit_softcapping=2.0,
                   final_logit_softcapping=5.0),
    "gemma3": dict(GEMMA, model_type="gemma3_text", rope_theta=1000000.0, rope_local_base_freq=10000.0,
                   sliding_window_pattern=3, rope_scaling={"rope_type": "linear", "factor": 8.0}),
    "phi3": dict(BASE, model_type="phi3", hidden_act="silu", rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None,
                 partial_rotary_factor=0.75, sliding_window=13, tie_word_embeddings=False, pad_token_id=0,
                 bos_token_id=1, eos_token_id=2, original_max_position_embeddings=128),
    "smollm3": dict(BASE, model_type="smollm3", hidden_act="silu", rms_norm_eps=1e-6, rope_theta=2000000.0,
                    no_rope_layers=[1, 1, 0, 1], attention_bias=False, mlp_bias=False, tie_word_embeddings=True,
                    use_sliding_window=False, sliding_window=None, pad_token_id=0, bos_token_id=1, eos_token_id=2),
}


def bits(name, index):
    """splitmix64 of the name's FNV-1a hash and a place."""
    x = 0xCBF29CE484222325
    for byte in name.encode():
        x = (x ^ byte) * 0x100000001B3 & MASK
    x = (x + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def numbers(name, shape, offset, spread):
    """offset plus spread times uniform numbers in [-1, 1): of 23 bits, of adapters 9, which FP16 holds."""
    shift = 55 if "lora_" in name else 41
    count = 1
    for n in shape:
        count *= n
    values = [offset + spread * ((bits(name, i) >> shift) / float(1 << 63 - shift) - 1.0) for i in range(count)]
    return torch.tensor(values, dtype=torch.float64).float().reshape(shape)


def spread_of(name, shape, offset_norms):
    if "lora_" in name:
        return 0.0, 0.5 if "lora_A" in name else 0.25
    if "norm" in name:
        return 0.0 if offset_norms else 1.0, 0.5
    if len(shape) == 1:
        return 0.0, 0.25
    return 0.0, 1.0 if "embed" in name else 0.5


def fill(tensor, name, offset_norms):
    offset, spread = spread_of(name, tensor.shape, offset_norms)
    with torch.no_grad():
        tensor.copy_(numbers(name, tensor.shape, offset, spread))


def gradient(name, grad):
    """The largest entry, the sum with signs, and some entries."""
    flat = grad.double().flatten()
    signs = torch.tensor([1.0 if bits(name + ".sign", i) & 1 else -1.0 for i in range(len(flat))])
    places = [bits(name + ".place", i) % len(flat) for i in range(SAMPLES)]
    return [float(f"{x:.7g}") for x in (flat.abs().max().item(), (flat * signs).sum().item(),
                                        *(flat[p].item() for p in places))]


def reference(name, config):
    settings = dict(config)
    loaded = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(loaded, attn_implementation="eager").float().eval()
    offset_norms = "gemma" in name
    tied = loaded.tie_word_embeddings
    shapes = {}
    for key, tensor in model.named_parameters():
        fill(tensor, key, offset_norms)
        shapes[key] = list(tensor.shape)
    assert tied != ("lm_head.weight" in shapes)
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", lora_dropout=0.0))
    model = model.double()
    adapters = {k: p for k, p in model.named_parameters() if "lora_" in k}
    short = {k: k.replace("base_model.model.", "", 1).replace(".default.weight", "") for k in adapters}
    for key, tensor in adapters.items():
        fill(tensor, short[key], offset_norms)
    ids = torch.tensor([[bits(name + ".ids", i) % config["vocab_size"] for i in range(TOKENS)]])
    logits = model(ids, use_cache=False).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[0, 1:], reduction="none")
    losses.mean().backward()
    saved = loaded.to_diff_dict() | {"model_type": loaded.model_type}
    return {
        "config": config, "config_as_saved": json.loads(json.dumps(saved, default=str)), "offset_norms": offset_norms,
        "tensors": shapes, "adapters": {short[k]: list(p.shape) for k, p in adapters.items()}, "rank": RANK,
        "alpha": ALPHA, "token_ids": ids[0].tolist(),
        "last_logits": [float(f"{x:.8g}") for x in logits[-1].tolist()],
        "losses": [float(f"{x:.7g}") for x in losses.tolist()],
        "gradients": {short[k]: gradient(short[k], p.grad) for k, p in adapters.items()},
    }


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or CONFIGS:
        made = reference(name, CONFIGS[name])
        lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in made.items())
        (out / f"{name}.json").write_text("{\n" + lines + "\n}\n")
        print(name, sum(made["losses"]) / len(made["losses"]), (out / f"{name}.json").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
