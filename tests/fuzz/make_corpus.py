#!/usr/bin/env python3
"""Writes the inputs that fuzzing starts from: small files of every kind that is read. The standard library is enough."""
import json
import random
import struct

from corpus_parts import (ARRAY, BOOL, F32, F64, I8, I16, I32, I64, STRING, TYPES, U8, U16, U32, U64, WIDTHS, Shape, count,
                          floats, gguf, gguf_config, gguf_model, gguf_name, put, safetensors, text, whole)
from corpus_texts import datasets, json_texts, runlogs, sentencepiece, settings, templates, tokenizers


def containers():
    rng = random.Random(2)
    kinds = {f"t.{dtype}": (dtype, [3, 2], None) for dtype in WIDTHS}
    put("safetensors", "every-type", whole(safetensors(kinds, {"format": "pt"})))
    put("safetensors", "empty-and-scalar", whole(safetensors({"none": ("F32", [0, 4], b""), "one": ("F16", [], b"\0\x3c"),
                                                              "many": ("U8", [1, 2, 1, 2, 1, 1, 1, 2], None)})))
    put("safetensors", "no-tensors", whole((b"{}", b"")))
    put("safetensors", "a-header-of-terabytes", struct.pack("<Q", 1 << 42) + b"{}")
    put("safetensors", "a-shape-that-overflows", whole((json.dumps({"a": {"dtype": "F32", "shape": [1 << 32, 1 << 32],
        "data_offsets": [0, 0]}}).encode(), b"")))
    first = safetensors({"a": ("F16", [2], floats("F16", 2, rng)), "b": ("F32", [1, 2], None)}, {"format": "pt"})
    second = safetensors({"c": ("BF16", [2, 2], floats("BF16", 4, rng))})
    index = {"metadata": {"total_size": 20}, "weight_map": {"a": "a.safetensors", "b": "a.safetensors", "c": "b.safetensors"}}
    put("shards", "two-files", index, *first, *second)
    put("shards", "one-file-twice", {"weight_map": {"a": "a.safetensors", "b": "./a.safetensors"}}, *first, *second)
    put("shards", "one-name-twice", {"weight_map": {"a": "a.safetensors", "c": "b.safetensors"}}, *first, *first)
    put("shards", "outside", {"weight_map": {"a": "../a.safetensors"}}, *first, *second)
    values = {"u8": (U8, 1), "i8": (I8, -1), "u16": (U16, 1), "i16": (I16, -1), "u32": (U32, 1), "i32": (I32, -1),
              "f32": (F32, 0.5), "yes": (BOOL, True), "text": (STRING, "words"), "u64": (U64, 1), "i64": (I64, -1),
              "f64": (F64, 0.5), "texts": (ARRAY, STRING, ["a", "", "bc"]), "numbers": (ARRAY, F32, [1, 2]),
              "bools": (ARRAY, BOOL, [True, False]), "bytes": (ARRAY, U8, [1, 2, 3]), "general.alignment": (U32, 32)}
    tensors = {kind: (kind, (2, size[1]), None) for kind, size in TYPES.items()}
    put("gguf", "every-type", gguf(values, tensors))
    put("gguf", "version-2", gguf({"a": (U8, 1)}, {"x": ("F32", (), b"\0\0\0\0"), "y": ("F16", (2, 0), b"")}, 2))
    put("gguf", "a-count-beyond-the-file", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60))
    put("gguf", "an-array-beyond-the-file", b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", ARRAY, U8, 1 << 62))
    put("gguf", "a-string-beyond-the-file", b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IQ", STRING, 1 << 63))


def inspections():
    rng = random.Random(6)
    s = Shape("llama", inter=8, vocab=4)
    stored = s.stored("F16", rng)
    header, data = safetensors(stored, {"format": "pt", "words": "w" * 200 + "\u001b[31m"})
    put("inspect", "a-file", b"s\n" + whole((header, data)))
    put("inspect", "a-gguf-file", b"g\n" + gguf_model(s, "F16", rng))
    put("inspect", "a-gguf-file-that-is-none", b"g\n" + whole((b"{}", b"")))
    del stored["model.layers.0.mlp.up_proj.weight"]
    put("inspect", "a-model", "m\n" + json.dumps(s.config()), header, data[:-2] + b"\x00\x7c")
    put("inspect", "a-model-that-lacks-a-tensor", "m\n" + json.dumps(s.config()), *safetensors(stored))
    pair = {"base_model.model.x.lora_A.weight": ("F16", [2, 3], None), "base_model.model.x.lora_B.weight": ("F16", [3, 1], None)}
    put("inspect", "an-adapter", "a\n" + json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["x"]}), *safetensors(pair))
    put("inspect", "a-tokenizer", "t\n" + json.dumps(sentencepiece()))
    put("inspect", "an-index", "j\n" + json.dumps({"weight_map": {"a": "b.safetensors"}}))


def models():
    rng = random.Random(1)
    llama, qwen2, qwen3 = Shape("llama"), Shape("qwen2", tied=True), Shape("qwen3", layers=2, tied=True)
    for letter, (s, dtype) in zip("abcdef", [(llama, "F16"), (qwen2, "BF16"), (qwen3, "F16"), (llama, "F32"),
                                             (qwen2, "F16"), (qwen3, "BF16")]):
        header, data = safetensors(s.stored(dtype, rng))
        put("model", f"{s.arch}-{dtype.lower()}", letter, s.config(), header, data)
        if letter in "abc":
            put("merge", f"{s.arch}-{dtype.lower()}", s.config(), header, data)
            put("config", s.arch, s.config())
    put("config", "llama3-scaling", llama.config(rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}, torch_dtype="bfloat16", hidden_act="silu"))
    put("config", "rope-parameters", llama.config(rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        attention_bias=True, mlp_bias=True, sliding_window=None, use_sliding_window=False, quantization_config=None))
    put("config", "huge", llama.config(hidden_size=1 << 20, intermediate_size=1 << 20, num_hidden_layers=1024, head_dim=256,
        num_attention_heads=1 << 20, vocab_size=1 << 24, max_position_embeddings=1 << 26))
    header, data = safetensors(llama.stored("F16", rng))
    put("model", "huge-norms", "a", llama.config(hidden_size=1 << 20, num_hidden_layers=1024), header, data)
    for s, dtype, blocks in [(llama, "F16", None), (qwen2, "BF16", None), (qwen3, "F32", None)]:
        raw = gguf_model(s, dtype, rng)
        put("gguf_model", f"{s.arch}-{dtype.lower()}", raw)
        put("merge", f"gguf-{s.arch}-{dtype.lower()}", raw)
    wide = Shape("llama", hidden=32, inter=32, heads=2, kv_heads=1, head_dim=16, vocab=3, tied=True)
    for blocks in ("Q8_0", "Q4_0", "Q4_1"):
        put("gguf_model", f"llama-{blocks.lower()}", gguf_model(wide, "F16", rng, blocks))
    put("merge", "gguf-llama-q8_0", gguf_model(llama, "F16", rng, "Q8_0"))
    widest = Shape("llama", hidden=4, inter=256, heads=1, kv_heads=1, head_dim=4, vocab=3, tied=True)
    for blocks in ("Q4_K", "Q5_K", "Q6_K"):
        put("gguf_model", f"llama-{blocks.lower()}", gguf_model(widest, "F16", rng, blocks))
    freqs = gguf(gguf_config(llama), {gguf_name(n): ("F32", s, floats("F32", count(s), rng)) for n, s in
                 llama.tensors().items()} | {"rope_freqs.weight": ("F32", (2,), struct.pack("<2f", 1, 8))})
    put("gguf_model", "llama-divisors", freqs)


TABLES = {
    "nf4": [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
            -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
            0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
    "fp4": [0.0, 0.0052083334, 0.6666667, 1.0, 0.33333334, 0.5, 0.16666667, 0.25],
}
TABLES["fp4"] += [-v for v in TABLES["fp4"]]


def bitsandbytes():
    """Folders whose linear layers are stored in 4 bits, nested or not."""
    rng = random.Random(4)
    for letter, (s, kind, nested) in zip("ab", [(Shape("llama", inter=16), "nf4", True),
                                                (Shape("qwen2", inter=16, tied=True), "fp4", False)]):
        tensors = {}
        for name, (dtype, shape, raw) in s.stored("F16", rng).items():
            if len(shape) == 1 or "layers" not in name:
                tensors[name] = (dtype, shape, raw)
                continue
            n, blocks = count(shape), -(-count(shape) // 64)
            state = {"quant_type": kind, "blocksize": 64, "dtype": "float16", "shape": shape}
            tensors[name] = ("U8", [n // 2, 1], rng.randbytes(n // 2))
            tensors[name + ".quant_map"] = ("F32", [16], struct.pack("<16f", *TABLES[kind]))
            if nested:
                state.update(nested_blocksize=256, nested_dtype="float32", nested_offset=0.25)
                tensors[name + ".absmax"] = ("U8", [blocks], rng.randbytes(blocks))
                tensors[name + ".nested_absmax"] = ("F32", [1], struct.pack("<f", 0.5))
                tensors[name + ".nested_quant_map"] = ("F32", [256], struct.pack("<256f", *[i / 128 - 1 for i in range(256)]))
            else:
                tensors[name + ".absmax"] = ("F32", [blocks], struct.pack(f"<{blocks}f", *[1.0] * blocks))
            raw = json.dumps(state).encode()
            tensors[f"{name}.quant_state.bitsandbytes__{kind}"] = ("U8", [len(raw)], raw)
        header, data = safetensors(tensors)
        quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind,
                        "bnb_4bit_use_double_quant": nested, "llm_int8_skip_modules": ["lm_head"]}
        put("model", f"bitsandbytes-{kind}", letter, s.config(quantization_config=quantization), header, data)
        put("config", f"bitsandbytes-{kind}", s.config(quantization_config=quantization))


def architectures():
    """Folders of the architectures that differ in their layers: windows, caps, fused matrices, layers without rotation."""
    rng = random.Random(5)
    more = {"gemma2": dict(sliding_window=4, query_pre_attn_scalar=4, attn_logit_softcapping=5.0,
                           final_logit_softcapping=3.0, hidden_activation="gelu_pytorch_tanh"),
            "gemma3_text": dict(sliding_window=4, sliding_window_pattern=2, rope_local_base_freq=1e4,
                                rope_scaling={"rope_type": "linear", "factor": 8.0}),
            "phi3": dict(original_max_position_embeddings=8, sliding_window=None,
                         rope_scaling={"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}),
            "smollm3": dict(no_rope_layers=[1, 0], use_sliding_window=False),
            "mistral": dict(sliding_window=3)}
    for arch, settings in more.items():
        s = Shape(arch, inter=16, layers=2, tied=arch != "mistral")
        tensors = s.tensors()
        for layer in range(2):
            p = f"model.layers.{layer}."
            if arch.startswith("gemma"):
                tensors[p + "pre_feedforward_layernorm.weight"] = tensors[p + "post_feedforward_layernorm.weight"] = (8,)
            if arch == "gemma3_text":
                tensors[p + "self_attn.q_norm.weight"] = tensors[p + "self_attn.k_norm.weight"] = (4,)
            if arch == "phi3":
                for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
                    del tensors[f"{p}{name}.weight"]
                tensors[p + "self_attn.qkv_proj.weight"] = (16, 8)
                tensors[p + "mlp.gate_up_proj.weight"] = (32, 8)
        stored = {name: ("F16", list(shape), floats("F16", count(shape), rng)) for name, shape in tensors.items()}
        put("model", f"{arch}-f16", "`", s.config(**settings), *safetensors(stored))
        put("config", arch, s.config(**settings))


# ---- adapters, checkpoints, caches ----

def adapters():
    rng = random.Random(3)
    rank, shapes = 2, {"q_proj": (8, 8), "k_proj": (4, 8), "v_proj": (4, 8), "o_proj": (8, 8), "gate_proj": (6, 8),
                       "up_proj": (6, 8), "down_proj": (8, 6)}

    def tensors(names, rank_of=lambda layer, name: rank, dtype="F32", layers=2):
        out = {}
        for layer in range(layers):
            for name in names:
                n, k = shapes[name]
                p = f"base_model.model.model.layers.{layer}.{'mlp' if name[-7:] != 'o_proj' and name[0] in 'gud' else 'self_attn'}.{name}.lora_"
                r = rank_of(layer, name)
                out[p + "A.weight"] = (dtype, [r, k], floats(dtype, r * k, rng))
                out[p + "B.weight"] = (dtype, [n, r], floats(dtype, n * r, rng))
        return out

    common = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "lora_dropout": 0.0, "bias": "none", "use_dora": False,
              "base_model_name_or_path": "base", "task_type": "CAUSAL_LM", "fan_in_fan_out": False, "modules_to_save": None}
    put("adapter", "plain", {**common, "target_modules": ["q_proj", "v_proj"]}, *safetensors(tensors(["q_proj", "v_proj"])))
    put("adapter", "all", {**common, "target_modules": "all-linear", "use_rslora": True}, *safetensors(tensors(shapes, dtype="F16")))
    put("adapter", "patterns", {**common, "target_modules": ".*\\.(k_proj|down_proj)", "rank_pattern": {"layers.1.mlp.down_proj": 3},
        "alpha_pattern": {"k_proj": 7.5}, "exclude_modules": ["q_proj"], "init_lora_weights": True},
        *safetensors(tensors(["k_proj", "down_proj"], lambda layer, name: 3 if layer and name == "down_proj" else 2, "BF16")))
    dora = tensors(["q_proj", "down_proj"], dtype="F16")
    dora.update({name.replace("lora_B.weight", "lora_magnitude_vector"): (dtype, shape[:1], floats(dtype, shape[0], rng))
                 for name, (dtype, shape, raw) in list(dora.items()) if "lora_B" in name})
    put("adapter", "dora", {**common, "use_dora": True, "target_modules": ["q_proj", "down_proj"]}, *safetensors(dora))
    put("adapter", "a-rank-of-thousands", {**common, "r": 65536, "target_modules": ["q_proj"]}, *safetensors(tensors(["q_proj"])))
    put("adapter", "a-costly-pattern", {**common, "target_modules": "(a*)*(a|aa)+(.*)*(.+)+x", "exclude_modules": "((.*)*)*y"},
        *safetensors(tensors(["q_proj"])))
    n = 8 + 8 + 8 + 4 + 8 + 4 + 8 + 8 + 8 + 6 + 8 + 6 + 6 + 8
    states = {name: ("F32", [n], floats("F32", n, rng)) for name in ("master", "moment1", "moment2")}
    put("checkpoint", "another-run", *safetensors(states, {"format": "qlora checkpoint", "version": "1", "done": "3", "of": "6"}))
    put("checkpoint", "as-saved", "P")
    for letter in "defgh":
        put("cache", f"as-written-{letter}", letter)
        put("cache", f"a-number-changed-{letter}", letter.encode() + b"\x10\x40\x01")
    put("checkpoint", "a-number-changed", b"P\x07\x01\x40")


if __name__ == "__main__":
    json_texts()
    containers()
    models()
    tokenizers()
    datasets()
    templates()
    adapters()
    bitsandbytes()
    architectures()
    settings()
    runlogs()
    inspections()
