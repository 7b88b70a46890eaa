#!/usr/bin/env python3
"""Writes the inputs that fuzzing starts from: small files of every kind that is read. The standard library is enough."""
import json
import pathlib
import random
import struct

CORPUS = pathlib.Path(__file__).parent / "corpus"
DIVIDER = b"\n%%%%\n"


def put(target, name, *parts):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    parts = [p if isinstance(p, bytes) else p.encode() if isinstance(p, str) else json.dumps(p).encode() for p in parts]
    (folder / name).write_bytes(DIVIDER.join(parts))


# ---- safetensors ----

WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "BOOL": 1, "F8_E4M3": 1}


def count(shape):
    n = 1
    for length in shape:
        n *= length
    return n


def floats(dtype, n, rng):
    values = [rng.uniform(-1, 1) for _ in range(n)]
    if dtype == "BF16":
        return b"".join(struct.pack("<f", v)[2:] for v in values)
    return struct.pack(f"<{n}{'f' if dtype == 'F32' else 'e'}", *values)


def safetensors(tensors, metadata=None, fill=None):
    """tensors: name -> (dtype, shape, bytes or None). Header and data."""
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, raw) in tensors.items():
        raw = raw if raw is not None else bytes(count(shape) * WIDTHS[dtype])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return json.dumps(header, separators=(",", ":")).encode(), data


def whole(parts):
    return struct.pack("<Q", len(parts[0])) + parts[0] + parts[1]


# ---- GGUF ----

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q8_0": (8, 32, 34),
         "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "BF16": (30, 1, 2)}


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value_of(kind, value):
    if kind == STRING:
        return text(value)
    return struct.pack("<" + CODES[kind], value)


def gguf(metadata, tensors, version=3):
    """metadata: key -> (type, value) or (ARRAY, type, values); tensors: name -> (type, shape row-major, bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, (kind, *rest) in metadata.items():
        out += text(key) + struct.pack("<I", kind)
        if kind == ARRAY:
            out += struct.pack("<IQ", rest[0], len(rest[1])) + b"".join(value_of(rest[0], v) for v in rest[1])
        else:
            out += value_of(kind, rest[0])
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        number, block, size = TYPES[kind]
        raw = raw if raw is not None else bytes(count(shape) // block * size)
        out += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in reversed(shape))
        out += struct.pack("<IQ", number, len(data))
        data += raw + bytes(-len(raw) % 32)
    return out + bytes(-len(out) % 32) + data


# ---- models ----

class Shape:
    def __init__(self, arch, hidden=8, inter=32, heads=2, kv_heads=1, head_dim=4, vocab=10, layers=1, tied=False):
        self.arch, self.hidden, self.inter, self.heads, self.kv_heads = arch, hidden, inter, heads, kv_heads
        self.head_dim, self.vocab, self.layers, self.tied = head_dim, vocab, layers, tied

    def config(self, **more):
        return {"model_type": self.arch, "vocab_size": self.vocab, "hidden_size": self.hidden,
                "intermediate_size": self.inter, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim, "max_position_embeddings": 16,
                "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": self.tied, **more}

    def matrices(self, layer):
        q, kv, p = self.heads * self.head_dim, self.kv_heads * self.head_dim, f"model.layers.{layer}."
        return {p + "self_attn.q_proj": (q, self.hidden), p + "self_attn.k_proj": (kv, self.hidden),
                p + "self_attn.v_proj": (kv, self.hidden), p + "self_attn.o_proj": (self.hidden, q),
                p + "mlp.gate_proj": (self.inter, self.hidden), p + "mlp.up_proj": (self.inter, self.hidden),
                p + "mlp.down_proj": (self.hidden, self.inter)}

    def tensors(self):
        out = {"model.embed_tokens.weight": (self.vocab, self.hidden), "model.norm.weight": (self.hidden,)}
        if not self.tied:
            out["lm_head.weight"] = (self.vocab, self.hidden)
        for layer in range(self.layers):
            p = f"model.layers.{layer}."
            for name, shape in self.matrices(layer).items():
                out[name + ".weight"] = shape
                if self.arch == "qwen2" and name[-6:] in ("q_proj", "k_proj", "v_proj"):
                    out[name + ".bias"] = (shape[0],)
            out[p + "input_layernorm.weight"] = out[p + "post_attention_layernorm.weight"] = (self.hidden,)
            if self.arch == "qwen3":
                out[p + "self_attn.q_norm.weight"] = out[p + "self_attn.k_norm.weight"] = (self.head_dim,)
        return out

    def stored(self, dtype, rng):
        return {name: (dtype, list(shape), floats(dtype, count(shape), rng)) for name, shape in self.tensors().items()}


GGUF_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
              "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
              "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
              "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
              "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def gguf_name(name):
    base, kind = name.rsplit(".", 1)
    if base.startswith("model.layers."):
        layer, part = base[len("model.layers."):].split(".", 1)
        return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"
    return f"{GGUF_NAMES[base]}.{kind}"


def gguf_config(s):
    a = s.arch + "."
    return {"general.architecture": (STRING, s.arch), a + "context_length": (U32, 16),
            a + "embedding_length": (U32, s.hidden), a + "feed_forward_length": (U32, s.inter),
            a + "block_count": (U32, s.layers), a + "attention.head_count": (U32, s.heads),
            a + "attention.head_count_kv": (U32, s.kv_heads), a + "attention.key_length": (U32, s.head_dim),
            a + "attention.layer_norm_rms_epsilon": (F32, 1e-5), a + "rope.freq_base": (F32, 1e4)}


def gguf_model(s, dtype, rng, blocks=None):
    """blocks: the type of the matrices whose rows are whole blocks of it; their bytes are mostly small scales."""
    tensors = {}
    for name, shape in s.tensors().items():
        kind, raw = ("F32" if len(shape) == 1 else dtype), None
        if blocks and len(shape) == 2 and shape[1] % TYPES[blocks][1] == 0:
            kind = blocks
            raw = bytes(rng.choice((0, 1, 0x2c)) for _ in range(count(shape) // TYPES[blocks][1] * TYPES[blocks][2]))
        else:
            raw = floats(kind, count(shape), rng)
        tensors[gguf_name(name)] = (kind, shape, raw)
    return gguf(gguf_config(s), tensors)


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


def settings():
    put("settings", "every-kind", "flag: off\nsize: 8  # words\nreal: 2.5e-1\nbytes: 4Gi\ntext: 'some words'\nchoice: two\n"
        "names: [a, b]\nlist:\n  - one\n  - \"t\\two\"\n")
    put("settings", "record", "text: ~\nrecord:\n  defaults: {size: 9, flag: no}\n  adapter: abc\n  files:\n    model: {name: x}\n")
    put("settings", "blocks", "text: |\n  a\n  b\n? names\n: >-\n  a,\n  b\n--- \n...\n")
    put("settings", "aliases", "a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]\n")
    put("settings", "deep", "{a: " * 200)
    put("settings", "brackets", "[" * 2000)
    put("settings", "controls", "\"a\\e[31m\\n\": 1\n\"a\\e[31m\\n\": 2\n")
    put("settings", "nul", "text: \"a\\0b\"\n")


def runlogs():
    evil = "</script></style><!--<script>&\"'\u0000\u202e\u00e9"
    start = {"event": "start", "model": evil, "architecture": "llama", "format": "nf4", "time": "now", "program": "p",
             "threads": 2, "parameters": 12345, "steps": 3, "resumed_at": 0, "options": {"lr": evil}, "defaults": {"rank": 8},
             "data": {"samples": 3, "tokens": 40, "learned": -1}, "files": {"data": {"x": "y"}, "z": 1},
             "memory": {"codes": 100, "scales": 1e300, "activations": -5, "process": 7, "total": 3}}
    steps = [{"event": "step", "step": n, "loss": loss, "lr": 1e-4, "grad_norm": 1.5, "tokens": 9, "seconds": 0.1}
             for n, loss in ((1, 2), (2, None), (3, 1.5))]
    sample = {"event": "sample", "sample": 1, "step": 0, "prompt": evil, "text": evil, "wanted": evil}
    end = {"event": "end", "interrupted": True, "memory": {"process": 1, "loaded": 5, "trained": 3, "peak": 9}}
    evals = [{"event": "eval", "step": n, "loss": 3 - n, "perplexity": 2} for n in (0, 3, 3, -1)]
    lines = [start, evals[0], sample, *steps, *evals[1:], {**sample, "step": 3}, end]
    put("runlog", "a-run", "\n".join(map(json.dumps, lines)) + "\n")
    put("runlog", "goes-on", "\n".join(map(json.dumps, lines + [{**start, "resumed_at": 1}, *steps[1:]])) + '\n{"event": "st')
    put("runlog", "a-point", json.dumps(steps[0]))
    put("runlog", "far-apart", "\n".join(json.dumps({"event": "step", "step": n, "loss": x}) for n, x in
                                         ((1, 1e99), (10 ** 14, -1e99), (2, 1e-320), (3, 5e-324))))
    put("runlog", "odd-numbers", "\n".join(json.dumps(line) for line in [
        {"event": "start", "steps": -5, "memory": {"codes": 1e300, "dense": -1, "total": 1e308, "adapters": 1e308},
         "data": {"samples": -1, "tokens": 1e30, "learned": "x"}},
        {"event": "step", "step": 1, "loss": -1e99, "tokens": -1e50, "seconds": 1e-99, "lr": 1e99},
        {"event": "step", "step": 999999999999999, "loss": 1e99, "tokens": 1e99, "seconds": 1e99, "lr": 0},
        {"event": "eval", "step": 0, "loss": 1e99}, {"event": "end", "memory": {"peak": 1e308, "loaded": -1e308}}]))
    put("runlog", "deep", '{"event": "start", "options": ' + '{"a":' * 3000)


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


def json_texts():
    put("json", "object", {"i": 1, "r": 1.5, "t": "text", "b": True, "n": None, "a": [{"x": 2}, 3], "o": {"k": 1}})
    put("json", "lines", '{"a": 1}\n\n{"b": [2]}\r\n"word"\n')
    put("json", "mark", "\ufeff{\"a\": 1}")
    put("json", "beyond-64-bits", '{"a": 1000000000000000019884624838656, "b": 2}')
    put("json", "deep", "[" * 3000)
    put("json", "deep-objects", '{"a":' * 3000)
    put("json", "escapes", r'{"\u0000": "\u0000\ud83d\ude00\\", "\n": "\t"}')
    put("json", "broken-pair", r'{"a": "\ud83d"}')
    put("json", "not-utf8", b'{"a": "\xff"}')


# ---- tokenizers ----

def byte_characters():
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in plain}
    table.update({b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in plain)})
    return [table[b] for b in range(256)]


TEXT = "Hi the 12 cafe\u0301 \u4e2d <|end|>\n"
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
          "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA2 = "{% if messages[0]['role'] == 'system' %}<<SYS>>{% endif %}[INST] {{ content }} [/INST]"


def added(first, *names, **flags):
    return [{"id": first + i, "content": n, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True, **flags} for i, n in enumerate(names)]


def byte_level(letters, **more):
    vocab = {c: i for i, c in enumerate(letters)}
    merges = []
    for a, b in (("t", "h"), ("th", "e"), ("\u0120", "the")):
        if a in vocab and b in vocab:
            vocab[a + b] = len(vocab)
            merges.append(f"{a} {b}")
    n = len(vocab)
    return {"version": "1.0", "added_tokens": added(n, "<|end|>", "<|im_start|>", "<|im_end|>"), "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "post_processor": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                      "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": vocab, "merges": merges}, **more}


def sentencepiece(**more):
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for token in [f"<0x{b:02X}>" for b in (0x0a, 0xcc, 0x81, 0xe4)] + ["\u2581", "H", "i", "t", "h", "e", "th", "\u2581the"]:
        vocab[token] = len(vocab)
    return {"added_tokens": added(0, "<unk>", "<s>", "</s>"),
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                           {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
            "pre_tokenizer": None,
            "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1],
                "tokens": ["<s>"]}}},
            "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": vocab,
                      "merges": [["t", "h"], ["\u2581th", "e"]][:1]}, **more}


def tokenizers():
    letters = byte_characters()
    few = [c for c in letters if c in "Hithe12caf\u0120\u010a" or ord(c) > 0x140]
    config = {"add_bos_token": False, "bos_token": None, "eos_token": "<|end|>", "pad_token": {"content": "<|end|>"},
              "chat_template": CHATML, "tokenizer_class": "GPT2Tokenizer"}
    put("tokenizer", "byte-level", TEXT, byte_level(letters), config, {"unk_token": "<|end|>"}, {"eos_token_id": [256, 2]},
        {"eos_token_id": 1, "model_type": "llama"})
    put("tokenizer", "few-bytes", TEXT, byte_level(few), config, "", "", "", CHATML)
    llama3 = "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
    put("tokenizer", "split", TEXT, byte_level(letters, normalizer=None, pre_tokenizer={"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": llama3}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}))
    put("tokenizer", "digits", TEXT, byte_level(letters, normalizer={"type": "NFKC"}, pre_tokenizer={"type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "Split", "pattern": {"String": "e"},
        "behavior": "Removed", "invert": True}, {"type": "ByteLevel", "add_prefix_space": False}]}))
    llama2 = {"add_bos_token": True, "bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>",
              "chat_template": [{"name": "default", "template": LLAMA2}]}
    put("tokenizer", "sentencepiece", TEXT, sentencepiece(), llama2, {"bos_token": "<s>"})
    put("tokenizer", "metaspace", TEXT, sentencepiece(normalizer={"type": "NFD"}, pre_tokenizer={"type": "Metaspace",
        "replacement": "\u2581", "prepend_scheme": "first", "split": True}, decoder={"type": "Metaspace",
        "replacement": "\u2581", "prepend_scheme": "first"}), llama2)
    put("tokenizer", "an-id-of-millions", TEXT, {"model": {"type": "BPE", "vocab": {"a": (1 << 22) - 1}, "merges": []}})
    put("tokenizer", "text-that-grows", "a" * 40, sentencepiece(normalizer={"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 15}] * 8}))
    gguf_tokenizers(letters)


def gguf_tokenizers(letters):
    key = "tokenizer.ggml."
    bpe = [*letters, "th", "the", "\u0120the", "<|end|>"]
    n = len(bpe)
    for pre in ("gpt-2", "qwen2", "llama-bpe", "smollm"):
        put("gguf_tokenizer", pre, gguf({key + "model": (STRING, "gpt2"), key + "pre": (STRING, pre),
            key + "tokens": (ARRAY, STRING, bpe), key + "token_type": (ARRAY, I32, [1] * (n - 1) + [3]),
            key + "merges": (ARRAY, STRING, ["t h", "th e", "\u0120 the"]), key + "eos_token_id": (U32, n - 1),
            key + "add_bos_token": (BOOL, False), "tokenizer.chat_template": (STRING, CHATML),
            "text": (STRING, "the 12 <|end|>the")}, {}))
    spm = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xE4>", "\u2581", "t", "h", "e", "th", "the", "\u2581the", "<extra>"]
    put("gguf_tokenizer", "spm", gguf({key + "model": (STRING, "llama"), key + "tokens": (ARRAY, STRING, spm),
        key + "scores": (ARRAY, F32, [-i for i in range(len(spm))]), key + "token_type": (ARRAY, I32,
        [2, 3, 3, 6, 6] + [1] * 7 + [4]), key + "bos_token_id": (U32, 1), key + "eos_token_id": (U32, 2),
        key + "unknown_token_id": (U32, 0), key + "padding_token_id": (U32, 0), key + "add_space_prefix": (BOOL, True),
        key + "eot_token_id": (U32, 2), "tokenizer.chat_template": (STRING, LLAMA2), "text": (STRING, "the <extra>\nthe")}, {}))


# ---- data, adapters, checkpoints ----

def datasets():
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    for letter in "@BDIPj":
        put("dataset", f"messages-{letter}", letter + "\n" + json.dumps({"messages": chat}) + "\n" +
            json.dumps({"messages": chat[1:]}) + "\n")
    for letter in "@CFh":
        put("dataset", f"completions-{letter}", letter + "\n" + json.dumps({"prompt": "a b", "completion": " c<|im_end|>"}) + "\n\n" +
            json.dumps({"prompt": "", "completion": "d" * 60}))
    for letter in "@AE":
        put("dataset", f"texts-{letter}", letter + "\n" + json.dumps({"text": "words </s> and words"}) + "\r\n" + json.dumps({"text": "x"}))
    for letter in "`aeg !":
        put("dataset", f"text-{ord(letter)}", letter + "\nSome words, caf\u00e9,\nand more of them. " + "la " * 30)
    put("dataset", "not-utf8", b"`\nwords \xff\xfe words")
    put("dataset", "other-keys", b'@\n{"instruction": "a", "output": "b"}\n')


def templates():
    """One template for every construct or so; tests/data/jinja.jsonl has more of them."""
    path = pathlib.Path(__file__).parents[1] / "data" / "jinja.jsonl"
    cases = [json.loads(line) for line in path.read_text().split("\n")[1:] if line]
    statements = [c["template"] for c in cases if "{%" in c["template"] and "text" in c]
    expressions = [c["template"] for c in cases if "{%" not in c["template"] and "text" in c]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, 2.5, None]}}}]}
    chat = {"messages": [{"role": "user", "content": "u"}, call, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "done<s>"}],
            "tools": [{"type": "function", "function": {"name": "f"}}], "chat_template_kwargs": {"n": 3, "list": [3, 1, 2]}}
    for i in range(0, len(statements), 4):
        put("jinja", f"statements-{i // 4:02}", "\n".join(statements[i:i + 4]))
    for i in range(0, len(expressions), 16):
        put("jinja", f"expressions-{i // 16:02}", "\n".join(expressions[i:i + 16]))
    put("jinja", "a-chat", "{% for m in messages %}<s>{{ m.role }}\n{{ m.content | default('', true) }}{% for t in m.tool_calls or [] %}"
        "{{ t.function | tojson(indent=2) }}{% endfor %}<s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}", chat)
    put("jinja", "deep-chat", "{{ messages | tojson }}", '{"messages": [{"role": "user", "content": ' + "[" * 400 + "]" * 400 + "}]}")


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
