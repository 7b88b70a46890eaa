#!/usr/bin/env python3
"""Small tokenizers built as those of Gemma, Phi-3, Mistral and SmolLM3 are ("merged" splits as Gemma does), and what
Hugging Face's tokenizers makes of some texts with them: DIR/NAME/tokenizer.json and vectors.json.

    python3 tools/make_tokenizer_references.py tests/data/tokenizers     # tokenizers
"""
import json
import pathlib
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = """The old hen found a red ribbon by the mill. "Whose is it?" she asked the fox, who did not know.
They went to the village together, and the goat told them that the ribbon was the wind's own, lost in 1987 or 2024.
def count(words):\n    total = 0\n    for word in words:\n        total += len(word)\n    return total\n
Le chat était là; der Hund lief über die Brücke; 猫は静かに眠る。 It's what they'd said: we'll see, I'm sure, don't worry!
""".splitlines(keepends=True) * 3
TEXTS = ["", " ", "  ", "a", "The hen found the ribbon.", " leading and trailing ", "two  spaces   and four    here",
         "line\nline\n\nthree\n\n\nend\n", "tabs\tand\t\tmore \t mixed", "It's what they'd said: WE'LL see, I'm sure.",
         "numbers 7 42 1987 20240 3.14159", "über die Brücke, là-bas", "猫は静か", "emoji 🙂 and 👩‍🚀 done", "a▁b ▁ ▁▁c",
         "  for word in words:\n        total += 1\r\n", "<s>raw</s>", "hello<end_of_turn>\nnext <start_of_turn>user",
         "<|user|>\n hi <|end|>  \n<|assistant|> yes", "[INST] do it [/INST] done", "CamelCaseWords and HTTPServer/path//x",
         "e\u0301 combining", "\u00a0nbsp\u2003em", "mixed<bos>tokens  <unk> here"]
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
          r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def spm(specials, normalizer, pre_tokenizer, strip, bos):
    """BPE over characters with byte fallback."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=560, special_tokens=specials + BYTES, show_progress=False, max_token_length=12))
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(m) for m in model["merges"]]
    t = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if normalizer:
        t.normalizer = normalizer
    if pre_tokenizer:
        t.pre_tokenizer = pre_tokenizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    t.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    t.post_processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1",
                                                     special_tokens=[(bos, t.token_to_id(bos))])
    return t


def byte_level(specials, pattern, bos, behavior="isolated"):
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior=behavior, invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, max_token_length=12))
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    if bos:
        t.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, t.token_to_id(bos))])])
    return t


def gemma():
    t = spm(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], normalizers.Replace(" ", "▁"),
            pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False), False, "<bos>")
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in ("<start_of_turn>", "<end_of_turn>")])
    t.add_tokens([AddedToken(s, special=False, normalized=False) for s in ("\n\n", "\n\n\n", "▁▁", "▁▁▁▁", "\t\t")])
    return t


def llama_normalizer():
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def phi3():
    t = spm(["<unk>", "<s>", "</s>"], llama_normalizer(), None, True, "<s>")
    t.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)] + [
        AddedToken(s, special=True, normalized=False, rstrip=True) for s in ("<|assistant|>", "<|user|>", "<|end|>")])
    return t


def mistral_v1():
    return spm(["<unk>", "<s>", "</s>"], llama_normalizer(), None, True, "<s>")


def mistral_v3():
    t = spm(["<unk>", "<s>", "</s>"], None,
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False), True, "<s>")
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in ("[INST]", "[/INST]")])
    return t


FAMILIES = {
    "gemma": gemma, "phi3": phi3, "mistral-v1": mistral_v1, "mistral-v3": mistral_v3,
    "mistral-nemo": lambda: byte_level(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], TEKKEN, "<s>"),
    "merged": lambda: byte_level(["</s>"], " ", None, "merged_with_previous"),
    "smollm3": lambda: byte_level(["<|begin_of_text|>", "<|im_start|>", "<|im_end|>"], LLAMA3, None),
}


def vectors(t):
    for text in TEXTS:
        plain = t.encode(text, add_special_tokens=False).ids
        yield {"text": text, "ids": plain, "with_specials": t.encode(text).ids,
               "decoded": t.decode(plain, skip_special_tokens=False)}


def main():
    for name in sys.argv[2:] or FAMILIES:
        folder = pathlib.Path(sys.argv[1], name)
        folder.mkdir(parents=True, exist_ok=True)
        t = FAMILIES[name]()
        (folder / "tokenizer.json").write_text(json.dumps(json.loads(t.to_str()), ensure_ascii=False,
                                                          separators=(",", ":")) + "\n")
        lines = [json.dumps(v, separators=(",", ":")) for v in vectors(t)]
        (folder / "vectors.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
        print(name, t.get_vocab_size(), "tokens", (folder / "tokenizer.json").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
