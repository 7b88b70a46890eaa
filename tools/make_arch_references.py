#!/usr/bin/env python3
"""Reference values of small models of every architecture, computed by transformers and PEFT: tests/data/arch/*.json.

The weights are a function of their names (see `numbers`), so that the tests make them again without torch. A file holds the
config.json, the tensors' shapes, token ids, logits, losses, and of each adapter's gradients the largest entry, some entries,
and the sum of all under signs that depend on their place.

    python3 tools/make_arch_references.py tests/data/arch     # torch, transformers, peft, gguf
"""
import json
import pathlib
import struct
import sys

import gguf
import numpy
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
    "phi3-long": dict(BASE, model_type="phi3", hidden_act="silu", rms_norm_eps=1e-5, rope_theta=10000.0,
                      rope_scaling={"type": "longrope", "short_factor": [1.0, 1.25, 1.5, 2.5],
                                    "long_factor": [1.0, 3.0, 9.0, 12.0]},
                      tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                      original_max_position_embeddings=64, sliding_window=None) | {"max_position_embeddings": 256},
    "smollm3": dict(BASE, model_type="smollm3", hidden_act="silu", rms_norm_eps=1e-6, rope_theta=2000000.0,
                    no_rope_layers=[1, 1, 0, 1], attention_bias=False, mlp_bias=False, tie_word_embeddings=True,
                    use_sliding_window=False, sliding_window=None, pad_token_id=0, bos_token_id=1, eos_token_id=2),
}

# Models in GGUF files: the matrices are blocks of random bits. "attn" and so on are parts of Hugging Face's names.
WIDE = dict(vocab_size=64, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, torch_dtype="float32", hidden_act="silu",
            rope_theta=10000.0)
GGUF = {
    "gguf-llama": (dict(WIDE, model_type="llama", rms_norm_eps=1e-5, tie_word_embeddings=True),
                   dict(embed="Q6_K", q_proj="Q4_K", k_proj="Q5_K", v_proj="Q6_K", o_proj="Q4_K", gate_proj="Q4_K",
                        up_proj="Q8_0", down_proj="Q6_K")),
    "gguf-qwen2": (dict(WIDE, model_type="qwen2", rms_norm_eps=1e-6, tie_word_embeddings=False),
                   dict(embed="Q8_0", lm_head="Q6_K", q_proj="Q5_K", k_proj="Q8_0", v_proj="Q4_1", o_proj="Q5_K",
                        gate_proj="Q4_K", up_proj="Q4_1", down_proj="Q4_0")),
    "gguf-qwen3": (dict(WIDE, model_type="qwen3", rms_norm_eps=1e-6, head_dim=64, tie_word_embeddings=True),
                   dict(embed="Q4_K", q_proj="Q6_K", k_proj="Q4_K", v_proj="Q5_K", o_proj="Q4_1", gate_proj="Q5_K",
                        up_proj="Q6_K", down_proj="Q8_0")),
}
# Bytes and elements of a block, and where its fp16 scales lie: a power of two each, which the block multiplies by 1 to 4.
BLOCKS = {"Q4_0": (18, 32, [(0, -6)]), "Q4_1": (20, 32, [(0, -6), (2, None)]), "Q8_0": (34, 32, [(0, -10)]),
          "Q4_K": (144, 256, [(0, -13), (2, -10)]), "Q5_K": (176, 256, [(0, -14), (2, -10)]),
          "Q6_K": (210, 256, [(208, -14)])}


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


def blocks_of(name, kind, shape):
    """The bytes of a matrix of such blocks: random but for the scales. Q4_1's minimum is -8 times its scale."""
    size, elements, scales = BLOCKS[kind]
    rows, per_row = shape[0], shape[1] // elements
    count = rows * per_row
    raw = b"".join(struct.pack("<Q", bits(name, i)) for i in range((count * size + 7) // 8))
    data = bytearray(raw[:count * size])
    for i in range(count):
        factor = 1 + bits(name + ".scale", i) % 4
        for place, power in scales:
            value = factor * 2.0 ** power if power is not None else -8 * factor * 2.0 ** scales[0][1]
            data[i * size + place:i * size + place + 2] = struct.pack("<e", value)
    return numpy.frombuffer(bytes(data), dtype=numpy.uint8).reshape(rows, per_row * size)


def fill_blocks(tensor, name, kind, pairs_of):
    """What gguf's own dequantization makes of them; rows of Llama's q and k go from pairs to halves."""
    values = gguf.quants.dequantize(blocks_of(name, kind, tensor.shape), gguf.GGMLQuantizationType[kind])
    values = torch.from_numpy(numpy.array(values, dtype=numpy.float32))
    if pairs_of:
        values = values.reshape(-1, pairs_of // 2, 2, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
    with torch.no_grad():
        tensor.copy_(values)


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


def reference(name, config, types={}):
    settings = dict(config)
    loaded = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(loaded, attn_implementation="eager").float().eval()
    offset_norms = "gemma" in name
    tied = loaded.tie_word_embeddings
    shapes, kinds = {}, {}
    for key, tensor in model.named_parameters():
        kind = next((types[part] for part in types if part in key and tensor.dim() == 2), None)
        if kind:
            paired = config["model_type"] == "llama" and ("q_proj" in key or "k_proj" in key)
            fill_blocks(tensor, key, kind, loaded.head_dim if paired else 0)
            kinds[key] = kind
        else:
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
        "tensors": shapes, "types": kinds, "adapters": {short[k]: list(p.shape) for k, p in adapters.items()}, "rank": RANK,
        "alpha": ALPHA, "token_ids": ids[0].tolist(),
        "last_logits": [float(f"{x:.8g}") for x in logits[-1].tolist()],
        "losses": [float(f"{x:.7g}") for x in losses.tolist()],
        "gradients": {short[k]: gradient(short[k], p.grad) for k, p in adapters.items()},
    }


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    cases = {name: (config,) for name, config in CONFIGS.items()} | GGUF
    for name in sys.argv[2:] or cases:
        made = reference(name, *cases[name])
        lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in made.items())
        (out / f"{name}.json").write_text("{\n" + lines + "\n}\n")
        print(name, sum(made["losses"]) / len(made["losses"]), (out / f"{name}.json").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
