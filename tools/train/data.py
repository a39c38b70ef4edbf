"""Corpus: its split, its tokens, and the windows of a training step.

A window is a pure function of (seed, step, row), so a run resumes at exactly its data position and
two models trained with one seed see the same text.
"""

import hashlib
import pathlib

import numpy as np

END_OF_TEXT = "<|endoftext|>"


def split_books(text, held_out_share=0.03):
    """The last share of each book, cut at a paragraph, is held out. Returns (train, held_out)."""
    train, held_out = [], []
    for book in text.split(END_OF_TEXT):
        book = book.strip("\n")
        if not book:
            continue
        goal = int(len(book) * (1 - held_out_share))
        cut = book.find("\n\n", goal)
        if cut < 0:
            cut = book.rfind("\n\n", 0, goal)
        if cut < 0:
            cut = len(book)
        train.append(book[:cut])
        held_out.append(book[cut:].strip("\n"))
    return train, [book for book in held_out if book]


def encode_books(tokenizer, books, end_id):
    """One array of ids: each book followed by `end_id`."""
    parts = [np.zeros(0, dtype=np.int64)]
    for book in books:
        parts.append(np.asarray(tokenizer.encode(book).ids + [end_id], dtype=np.int64))
    return np.concatenate(parts)


def load_tokens(corpus, tokenizer_file, cache=None):
    """(train ids, held-out ids, bytes of each id). Cached by content, since encoding takes a while."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    text = pathlib.Path(corpus).read_text(encoding="utf-8")
    key = hashlib.sha256((tokenizer.to_str() + text).encode()).hexdigest()[:16]
    lengths = token_bytes(tokenizer)
    file = pathlib.Path(cache) / f"tokens-{key}.npz" if cache else None
    if file and file.exists():
        stored = np.load(file)
        return stored["train"].astype(np.int64), stored["held_out"].astype(np.int64), lengths
    end_id = tokenizer.token_to_id(END_OF_TEXT)
    train, held_out = (encode_books(tokenizer, part, end_id) for part in split_books(text))
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, train=train.astype(np.int32), held_out=held_out.astype(np.int32))
    return train, held_out, lengths


def token_bytes(tokenizer):
    """Bytes of text that each id stands for (byte-level: one character a byte); 0 for specials."""
    size = tokenizer.get_vocab_size()
    return np.array(
        [0 if i == 0 else len(tokenizer.id_to_token(i)) for i in range(size)], dtype=np.int64
    )


class Windows:
    """Windows of `context` tokens: each epoch covers the text once, in random order.

    One window in eight starts at a paragraph behind the end-of-text id, so that generation from an
    empty prompt is in distribution.
    """

    def __init__(self, tokens, context, newline_id, end_id=0, seed=0):
        self.tokens, self.context, self.end_id, self.seed = tokens, context, end_id, seed
        self.per_epoch = (len(tokens) - 2 * context) // context
        newline = tokens == newline_id
        starts = np.flatnonzero(newline[:-1] & newline[1:]) + 2
        self.paragraphs = starts[starts < len(tokens) - context - 1]

    def row(self, number):
        """The window of that number since the run's beginning: [context] int64."""
        epoch, place = divmod(number, self.per_epoch)
        if getattr(self, "_epoch", None) != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._epoch, self._phase = epoch, int(rng.integers(self.context))
            self._order = rng.permutation(self.per_epoch)
        start = self._phase + int(self._order[place]) * self.context
        if number % 8 == 0:
            at = min(np.searchsorted(self.paragraphs, start), len(self.paragraphs) - 1)
            start = int(self.paragraphs[at])
            rest = self.tokens[start : start + self.context - 1]
            return np.concatenate([[self.end_id], rest])
        return self.tokens[start : start + self.context]

    def batch(self, first, rows):
        return np.stack([self.row(first + i) for i in range(rows)])


def pad_first_block(batch, first, block_length, pad_id=0, seed=0):
    """Random padding of the first block: 0 .. L-1 pads before each row, its end cut off.

    Returns (tokens of the same shape, pads of each row).
    """
    out = np.empty_like(batch)
    pads = np.empty(len(batch), dtype=np.int64)
    for i, row in enumerate(batch):
        pad = int(np.random.default_rng([seed, 1, first + i]).integers(block_length))
        out[i, :pad] = pad_id
        out[i, pad:] = row[: len(row) - pad]
        pads[i] = pad
    return out, pads
