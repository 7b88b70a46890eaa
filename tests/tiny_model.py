"""Writes a tiny random Llama with a byte-level tokenizer and a ChatML template: the standard library is enough."""
import array
import json
import pathlib
import random
import struct

HIDDEN, INTER, HEADS, KV_HEADS, HEAD_DIM, LAYERS, POSITIONS = 32, 48, 4, 2, 8, 2, 128
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
          "+ '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def byte_characters():
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    table = {b: chr(b) for b in plain}
    table.update({b: chr(256 + i) for i, b in enumerate(others)})
    return [table[b] for b in range(256)]


def write_tokenizer(folder):
    vocab = {c: i for i, c in enumerate(byte_characters())}
    added = [{"id": 256 + i, "content": s, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, s in enumerate(SPECIALS)]
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": []},
    }))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "add_bos_token": False, "bos_token": None, "eos_token": SPECIALS[0], "chat_template": CHATML,
        "tokenizer_class": "GPT2Tokenizer"}))


def tensor_shapes():
    shapes = {"model.embed_tokens.weight": [256 + len(SPECIALS), HIDDEN], "model.norm.weight": [HIDDEN]}
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        shapes.update({
            p + "input_layernorm.weight": [HIDDEN], p + "post_attention_layernorm.weight": [HIDDEN],
            p + "self_attn.q_proj.weight": [q, HIDDEN], p + "self_attn.k_proj.weight": [kv, HIDDEN],
            p + "self_attn.v_proj.weight": [kv, HIDDEN], p + "self_attn.o_proj.weight": [HIDDEN, q],
            p + "mlp.gate_proj.weight": [INTER, HIDDEN], p + "mlp.up_proj.weight": [INTER, HIDDEN],
            p + "mlp.down_proj.weight": [HIDDEN, INTER]})
    return shapes


def write_weights(folder):
    rng, header, data = random.Random(1), {}, b""
    for name, shape in tensor_shapes().items():
        if len(shape) == 1:
            values = [1.0] * shape[0]
        else:
            scale = 1.0 if "embed" in name else 0.25
            values = [rng.gauss(0, scale) for _ in range(shape[0] * shape[1])]
        raw = array.array("f", values).tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_model(folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INTER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": 256 + len(SPECIALS),
        "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True, "eos_token_id": 256,
        "torch_dtype": "float32"}))
    write_weights(folder)
    write_tokenizer(folder)
    return str(folder)
