"""What is trained on is never scored, every scored token is scored once, and its bytes are its own."""

from __future__ import annotations

import gzip
import hashlib
import random
import shutil
import string
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
import torch

from latentbridge.config import Origin, Tree, build
from latentbridge.data.assets import ASSETS
from latentbridge.data.config import TextConfig, TextSample
from latentbridge.data.encoders import build_encoder, train_bpe
from latentbridge.data.text import Corpus, load_splits, unigram_bits_per_byte
from latentbridge.data.tokenizers import build_tokenizer
from latentbridge.errors import ConfigError, RunError

WORDS = ["".join(random.Random(seed).choices(string.ascii_lowercase, k=2 + seed % 7)) for seed in range(60)]


def words(seed: int, count: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def config_of(**settings) -> TextConfig:
    return build(TextConfig, Tree(settings, {(): Origin("test.yaml", 1)}))


@pytest.fixture
def files(tmp_path):
    """Forty paragraphs to train on, and twelve that are held out; two of those are not new."""
    train = [words(seed, 11) for seed in range(40)]
    held_out = [words(100 + seed, 13) for seed in range(12)]
    held_out[1], held_out[9] = train[7], held_out[3]
    (tmp_path / "train.txt").write_text("\n\n".join(train))
    with gzip.open(tmp_path / "held_out.txt.gz", "wt") as file:
        file.write("\n \n".join(held_out) + "\n")
    return {
        "name": "files",
        "train_files": [str(tmp_path / "train.txt")],
        "eval_files": [str(tmp_path / "held_out.txt.gz")],
        "context": 8,
        "eval_tokens": 40,
    }


@pytest.fixture
def make(files, tmp_path):
    def corpus(seed: int = 0, **changes) -> Corpus:
        return Corpus(config_of(**{**files, **changes}), tmp_path / "cache", seed)

    return corpus


def test_no_split_shares_a_paragraph_not_even_of_the_bundled_text(files):
    for config in (config_of(), config_of(**files), config_of(**{**files, "eval_files": []})):
        splits = {name: set(paragraphs) for name, paragraphs in load_splits(config).items()}
        for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
            assert splits[one] and not splits[one] & splits[other]

    sizes = {name: len(paragraphs) for name, paragraphs in load_splits(config_of(**files)).items()}
    assert sizes == {"train": 40, "validation": 5, "test": 5}


def test_stories_and_problems_hold_out_stories_and_read_one_training_problem_in_four():
    splits = load_splits(config_of(name="stories_and_problems"))
    stories = load_splits(config_of())

    assert splits["train"][: len(stories["train"])] == stories["train"]
    assert len(splits["train"]) - len(stories["train"]) == -(-7473 // 4)
    assert splits["train"][-1].splitlines()[-1].startswith("#### ")
    assert (splits["validation"], splits["test"]) == (stories["validation"], stories["test"])


def test_what_is_cut_from_the_training_files_is_their_last_tenth(files):
    splits = load_splits(config_of(**{**files, "eval_files": []}))

    assert splits["train"] == [words(seed, 11) for seed in range(36)]
    assert splits["validation"] + splits["test"] == [words(seed, 11) for seed in range(36, 40)]


def test_a_sample_is_from_all_over_the_text_and_of_a_longer_text_another(files, tmp_path):
    """A rehearsal learnt pieces of all of a text, and cut all of it up: of 60 MB that took 90 seconds."""
    whole = load_splits(config_of(**files))
    sample = load_splits(TextSample(**files, characters=600))
    with open(tmp_path / "train.txt", "a") as file:
        file.write("\n\nx")
    of_more = load_splits(TextSample(**files, characters=600))

    assert 4 <= len(sample["train"]) < len(whole["train"]) / 3
    places = [whole["train"].index(paragraph) for paragraph in sample["train"]]
    assert len({b - a for a, b in pairwise(places)}) == 1
    assert of_more["train"] != sample["train"]
    assert load_splits(TextSample(**files)) == load_splits(config_of(**files))


def test_of_one_long_paragraph_a_sample_is_all(files, tmp_path):
    (tmp_path / "train.txt").write_text(words(3, 4000))

    assert load_splits(TextSample(**files, characters=1000))["train"] == [words(3, 4000)]


def test_a_text_without_blank_lines_is_refused(tmp_path, files):
    (tmp_path / "train.txt").write_text("one line\nanother line\n")

    with pytest.raises(RunError, match="no paragraph is left for train"):
        load_splits(config_of(**{**files, "eval_files": []}))


@pytest.mark.parametrize("tokenizer", ["characters", "bytes", "bpe", "bundled:llama_bpe"])
def test_tokens_stand_for_every_byte_of_the_text(make, files, tokenizer):
    corpus = make(tokenizer=tokenizer)
    for split, paragraphs in load_splits(config_of(**files)).items():
        assert corpus.num_bytes[split] == sum(len(p.encode()) + 2 for p in paragraphs)
    assert int(corpus.tokens["train"][0].max()) < corpus.vocab_size


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe", "characters"])
def test_a_tokens_bytes_are_those_of_its_own_text(tokenizer):
    text = "aé 漢🙂b aé"
    encoder = build_encoder(
        tokenizer, {"bpe": train_bpe(["aé "], 300), "characters": text}.get(tokenizer, "")
    )
    ((ids, counts),) = encoder.encode([text])

    assert counts.sum() == len(text.encode()) == 16
    if tokenizer == "characters":
        assert counts.tolist() == [1, 2, 1, 3, 4, 1, 1, 1, 2]
        assert len(set(ids.tolist())) == len(set(text))
    if tokenizer == "bytes":
        assert ids.tolist() == list(text.encode())


def test_characters_that_the_training_text_lacks_are_counted(make, tmp_path, files):
    with gzip.open(files["eval_files"][0], "at") as file:
        file.write("\n\nZ" + words(7, 5) + "ZÄ\n\n" + words(8, 5))
    corpus = make()

    assert corpus.unknown == {"train": 0, "validation": 0, "test": 3}
    assert corpus.facts()["splits"]["test"]["unknown_tokens"] == 3


def test_the_record_says_by_content_which_files_each_split_is_cut_from(make, files):
    train, held_out = (
        hashlib.sha256(Path(files[key][0]).read_bytes()).hexdigest() for key in ("train_files", "eval_files")
    )
    apart = make().facts()["splits"]
    both = files["train_files"] + files["eval_files"]
    together = make(train_files=both, eval_files=[], eval_tokens=8).facts()["splits"]

    assert [apart[split]["sha256"] for split in apart] == [[train], [held_out], [held_out]]
    assert [together[split]["sha256"] for split in together] == 3 * [[train, held_out]]


def test_a_bpe_learnt_twice_is_the_same_to_the_byte():
    paragraphs = [words(seed, 40) for seed in range(30)]

    assert train_bpe(paragraphs, 400) == train_bpe(paragraphs, 400)
    assert build_encoder("bpe", train_bpe(paragraphs, 400)).vocab_size == 400


def test_evaluation_windows_are_disjoint_whole_and_spread_over_the_split(make):
    corpus = make(eval_tokens=83)  # ten windows of 8, and 3 tokens that no whole window scores
    starts = corpus.eval_windows("test")
    ids, num_bytes = corpus.take("test", starts)

    assert len(starts) == 10 and ids.shape == (10, 9)
    assert all(after - before >= 9 for before, after in pairwise(starts))
    length = corpus.tokens["test"].shape[1]
    assert starts[0] == 0 and length / 2 < starts[-1] <= length - 9
    assert num_bytes == [8] * 10
    assert corpus.facts()["eval_scored_tokens"] == 80


def test_as_many_windows_as_there_are_cover_the_whole_split(make):
    lengths = {split: make().tokens[split].shape[1] for split in ("validation", "test")}
    shorter = min(lengths, key=lengths.__getitem__)
    whole = lengths[shorter] // 9
    starts = make(eval_tokens=whole * 8).eval_windows(shorter)

    assert starts == [number * 9 for number in range(whole)]
    limit = rf"text.eval_tokens is {whole * 8 + 8}.*write text.eval_tokens: {whole * 8}"
    with pytest.raises(RunError, match=limit):
        make(eval_tokens=whole * 8 + 8)


def test_a_pass_reads_every_token_once_but_for_its_ends_and_each_pass_is_cut_elsewhere(make):
    corpus = make(seed=3)
    text = corpus.tokens["train"][0]
    firsts = []
    for number in range(4):
        indices = [number * corpus.num_blocks + block for block in range(corpus.num_blocks)]
        blocks = corpus.train_windows(indices)
        start = corpus._start(indices[0])
        assert numpy.array_equal(blocks.flatten().numpy(), text[start : start + blocks.numel()])
        assert 0 <= start <= 8 and len(text) - start - blocks.numel() < 18
        firsts.append(start)
    assert len(set(firsts)) > 1
    assert torch.equal(corpus.train_windows([5, 2]), make(seed=3).train_windows([5, 2]))
    assert firsts != [make(seed=4)._start(n * corpus.num_blocks) for n in range(4)]


def test_ids_are_made_once_and_mapped(make, monkeypatch):
    make(tokenizer="bpe")
    monkeypatch.setattr("latentbridge.data.text.load_splits", None)

    assert all(isinstance(tokens, numpy.memmap) for tokens in make(tokenizer="bpe").tokens.values())


def test_ids_of_a_sample_are_not_those_of_the_text(files, tmp_path):
    whole = Corpus(config_of(**files), tmp_path / "cache")
    sample = Corpus(TextSample(**files, characters=600), tmp_path / "cache")

    assert sample.tokens["train"].shape[1] < whole.tokens["train"].shape[1] / 3


def test_a_changed_file_is_another_text(make, files, tmp_path):
    before = make().tokens["train"].shape[1]
    (tmp_path / "train.txt").write_text("\n\n".join(words(seed, 12) for seed in range(40)))

    assert make().tokens["train"].shape[1] > before


def test_a_folders_changed_tokenizer_makes_other_ids(make, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "models" / "llama_bpe", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    small = make(tokenizer=str(folder)).vocab_size
    build_tokenizer("characters").save_pretrained(folder)

    assert make(tokenizer=str(folder)).vocab_size != small


def test_unigram_bits_are_the_entropy_of_the_splits_own_counts(make):
    corpus = make(tokenizer="bytes")
    counts = Counter(corpus.tokens["test"][0].tolist())
    total = sum(counts.values())
    bits = sum(-count * numpy.log2(count / total) for count in counts.values())

    assert unigram_bits_per_byte(corpus, "test") == pytest.approx(bits / total)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"name": "files"}, "train_files is empty"),
        ({"train_files": ["a.txt"]}, "write name: files"),
        ({"vocab_size": 300}, "only that of tokenizer bpe"),
        ({"tokenizer": "character"}, "write characters, bytes, bpe"),
        ({"context": 64, "eval_tokens": 63}, "eval_tokens is 63"),
    ],
)
def test_impossible_settings_are_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        config_of(**settings)


def test_a_file_that_is_not_there_is_named(files, make, tmp_path):
    with pytest.raises(ConfigError, match=r"text.train_files names .*nothing.txt"):
        make(train_files=[str(tmp_path / "nothing.txt")])


def test_a_context_longer_than_the_text_is_refused(make):
    with pytest.raises(RunError, match="the training text has only"):
        make(context=5000, eval_tokens=5000)
