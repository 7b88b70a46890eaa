"""Writes a Hugging Face folder in bitsandbytes' 4-bit layout from a dense fp32 one, and a dense one of what the codes mean:
the standard library is enough."""
import array
import bisect
import json
import pathlib
import shutil
import struct

NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
FP4 = [s * m for s in (1, -1) for m in (0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4)]
TABLES = {"nf4": NF4, "fp4": FP4}
BLOCK, NESTED = 64, 256


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def dynamic_map():
    """The signed 8-bit map of absmax, up to roundings."""
    values = [0.0, 1.0]
    for i in range(7):
        steps = 2 ** i
        for j in range(steps):
            x = 10.0 ** (i - 6) * (0.1 + 0.9 * (j + 0.5) / steps)
            values += [f32(x), f32(-x)]
    return sorted(values)


def read_safetensors(path):
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: (t["dtype"], t["shape"], data[8 + size + t["data_offsets"][0]:8 + size + t["data_offsets"][1]])
            for name, t in header.items()}


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def floats(values):
    return array.array("f", values).tobytes()


class Nearest:
    def __init__(self, table):
        self.order = sorted(range(len(table)), key=table.__getitem__)
        ascending = [table[i] for i in self.order]
        self.middles = [(a + b) / 2 for a, b in zip(ascending, ascending[1:])]

    def code(self, x):
        return self.order[bisect.bisect_left(self.middles, x)]


def quantize(name, shape, raw, kind, nested):
    """The tensors of a linear layer, and the values that they stand for."""
    table, values = [f32(x) for x in TABLES[kind]], array.array("f", raw)
    nearest = Nearest(table)
    absmax = [max(map(abs, values[i:i + BLOCK])) for i in range(0, len(values), BLOCK)]
    codes = [nearest.code(x / (absmax[i // BLOCK] or 1)) for i, x in enumerate(values)]
    pairs = codes + [0] * (len(codes) % 2)
    state = {"quant_type": kind, "blocksize": BLOCK, "dtype": "float32", "shape": shape}
    tensors = {name: ("U8", [len(pairs) // 2, 1], bytes(a << 4 | b for a, b in zip(pairs[::2], pairs[1::2]))),
               name + ".quant_map": ("F32", [16], floats(table))}
    if nested:
        offset, levels = f32(sum(absmax) / len(absmax)), dynamic_map()
        rest = [f32(a - offset) for a in absmax]
        outer = [max(map(abs, rest[i:i + NESTED])) for i in range(0, len(rest), NESTED)]
        nearest = Nearest(levels)
        small = [nearest.code(r / (outer[i // NESTED] or 1)) for i, r in enumerate(rest)]
        absmax = [f32(f32(levels[c] * outer[i // NESTED]) + offset) for i, c in enumerate(small)]
        state.update(nested_blocksize=NESTED, nested_dtype="float32", nested_offset=offset)
        tensors.update({name + ".absmax": ("U8", [len(small)], bytes(small)),
                        name + ".nested_absmax": ("F32", [len(outer)], floats(outer)),
                        name + ".nested_quant_map": ("F32", [256], floats(levels))})
    else:
        tensors[name + ".absmax"] = ("F32", [len(absmax)], floats(absmax))
    text = json.dumps(state).encode()
    tensors[f"{name}.quant_state.bitsandbytes__{kind}"] = ("U8", [len(text)], text)
    return tensors, floats(table[c] * absmax[i // BLOCK] for i, c in enumerate(codes))


def write_models(source, quantized, meant, kind="nf4", nested=True, dense_layers=()):
    """Two folders: as bitsandbytes would save the model, and dense with the same values."""
    source, folders = pathlib.Path(source), [pathlib.Path(quantized), pathlib.Path(meant)]
    both = {}, {}
    for name, (dtype, shape, raw) in read_safetensors(source / "model.safetensors").items():
        both[0][name] = both[1][name] = (dtype, shape, raw)
        if "_proj.weight" in name and not any(layer in name for layer in dense_layers):
            del both[0][name]
            tensors, values = quantize(name, shape, raw, kind, nested)
            both[0].update(tensors)
            both[1][name] = (dtype, shape, values)
    for folder, tensors in zip(folders, both):
        shutil.copytree(source, folder)
        write_safetensors(folder / "model.safetensors", tensors)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested,
        "llm_int8_enable_fp32_cpu_offload": False, "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(dense_layers) or None, "llm_int8_threshold": 6.0, "load_in_4bit": True,
        "load_in_8bit": False, "quant_method": "bitsandbytes"}
    (folders[0] / "config.json").write_text(json.dumps(config))
    return tuple(map(str, folders))
