"""What the inputs of a corpus are made of: safetensors and GGUF files, and models of any shape in them."""
import json
import pathlib
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


def safetensors(tensors, metadata=None):
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
