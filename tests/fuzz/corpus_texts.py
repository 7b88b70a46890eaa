"""Inputs for the readers of text: JSON, settings, logs of runs, tokenizers, data sets and chat templates."""
import json
import pathlib

from corpus_parts import ARRAY, BOOL, F32, I32, STRING, U32, gguf, put


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


# ---- data sets, chat templates ----

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
