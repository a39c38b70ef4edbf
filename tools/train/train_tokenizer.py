#!/usr/bin/env python3
"""Trains the byte-level BPE tokenizer of the demonstration models and writes its three files."""

import argparse
import json
import pathlib

from data import END_OF_TEXT, split_books


def train(corpus, vocab_size):
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = pathlib.Path(corpus).read_text(encoding="utf-8")
    paragraphs = (p + "\n\n" for book in split_books(text)[0] for p in book.split("\n\n"))
    tokenizer.train_from_iterator(paragraphs, trainer)
    return tokenizer


def write(tokenizer, folder):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    roles["pad_token"] = END_OF_TEXT
    (folder / "special_tokens_map.json").write_text(json.dumps(roles, indent=1) + "\n")
    settings = dict(
        roles,
        add_prefix_space=False,
        clean_up_tokenization_spaces=False,
        tokenizer_class="GPTNeoXTokenizer",
        model_max_length=8192,
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", required=True, help="text, books separated by <|endoftext|>")
    parser.add_argument("--out", required=True, help="folder for tokenizer.json and its settings")
    parser.add_argument("--vocab-size", type=int, default=2048)
    args = parser.parse_args()
    tokenizer = train(args.corpus, args.vocab_size)
    write(tokenizer, pathlib.Path(args.out))
    print(f"{tokenizer.get_vocab_size()} entries in {args.out}")


if __name__ == "__main__":
    main()
