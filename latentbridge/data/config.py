"""Which problems or texts a run trains on and is tested with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from latentbridge.config import Config

GSM8K_SIZES = {"train": 7473, "eval": 1319}
GENERATED_TRAIN_EXAMPLES = 1_000_000
BPE_ENTRIES = 4096
OWN_TOKENIZERS = ("characters", "bytes", "bpe")

# strict tuples refuse YAML lists, hence the exception
Files = Annotated[tuple[str, ...], Field(strict=False)]


class ProblemsConfig(Config):
    """A problem set and how much of it; generated word problems need no file and never run out."""

    name: Literal["word_problems", "gsm8k"] = "word_problems"
    # None: all of GSM8K, or a million generated problems
    train_examples: int | None = Field(None, ge=1)
    eval_examples: int = Field(256, ge=1)
    # worked examples before every question; 8 is the prompt the seed used for both models
    few_shot: int = Field(0, ge=0, le=8)
    # one_step: one operation on small numbers, which a CPU can teach in a minute
    templates: Literal["all", "one_step"] = "all"

    @model_validator(mode="after")
    def _possible(self) -> ProblemsConfig:
        if self.name == "word_problems":
            if self.few_shot:
                raise ValueError(f"few_shot is {self.few_shot}; only gsm8k has worked examples, so write 0")
            return self
        if self.templates != "all":
            raise ValueError(f"templates is '{self.templates}'; gsm8k has none, so leave it out")
        for key, limit in (("train", GSM8K_SIZES["train"] - self.few_shot), ("eval", GSM8K_SIZES["eval"])):
            asked = getattr(self, f"{key}_examples")
            if asked is not None and asked > limit:
                raise ValueError(
                    f"{key}_examples is {asked}; gsm8k has {limit} with few_shot {self.few_shot}"
                )
        return self


class TextConfig(Config):
    """A text to model, how it is cut into tokens, and how much of what is held out is scored."""

    # tinystories: bundled, 0.9 MB to train on and 0.8 MB held out;  files: your own
    # stories_and_problems: the same with as much again of GSM8K's training problems; stories are held out
    name: Literal["tinystories", "stories_and_problems", "files"] = "tinystories"
    # plain or gzip, a blank line between paragraphs
    train_files: Files = ()
    # half is for validation, half for test; none: the last tenth of the training files' paragraphs
    eval_files: Files = ()
    # characters (of the training text), bytes, bpe (byte-level, learnt on the training text), or the model
    # whose tokenizer it is: bundled:NAME, a folder or a hub id
    tokenizer: str = "characters"
    # entries of bpe; None: 4096
    vocab_size: int | None = Field(None, ge=257)
    # tokens that a model reads at once
    context: int = Field(256, ge=2)
    # tokens that are scored in one evaluation, in whole windows: eval_tokens // context
    eval_tokens: int = Field(65_536, ge=1)

    def part_of(self, paragraphs: list[str]) -> list[str]:
        """What is read of a split: all."""
        return paragraphs

    @model_validator(mode="after")
    def _files_go_with_their_name(self) -> TextConfig:
        if self.name == "files" and not self.train_files:
            raise ValueError("train_files is empty; name the text files to train on")
        if self.name != "files" and (self.train_files or self.eval_files):
            raise ValueError(f"train_files or eval_files is set and name is '{self.name}'; write name: files")
        return self

    @model_validator(mode="after")
    def _tokens_fit(self) -> TextConfig:
        is_model = self.tokenizer.startswith("bundled:") or "/" in self.tokenizer
        if self.tokenizer not in OWN_TOKENIZERS and not is_model:
            raise ValueError(
                f"tokenizer is '{self.tokenizer}'; write {', '.join(OWN_TOKENIZERS)}, bundled:NAME, a folder "
                "(with a slash, as in ./name) or a hub id like org/name"
            )
        if self.vocab_size is not None and self.tokenizer != "bpe":
            raise ValueError(f"vocab_size is {self.vocab_size}; only that of tokenizer bpe can be chosen")
        if self.eval_tokens < self.context:
            raise ValueError(
                f"eval_tokens is {self.eval_tokens}, less than a window; context is {self.context}"
            )
        return self


class TextSample(TextConfig):
    """About so many characters of each split, from all over it: as much as a rehearsal needs to read."""

    characters: int = 2_000_000

    def part_of(self, paragraphs: list[str]) -> list[str]:
        """Every n-th paragraph, from one on that follows from the length: of a longer text others."""
        total = sum(map(len, paragraphs))
        step = max(1, total // self.characters)
        # a text may be one long paragraph
        return paragraphs[total % step :: step] or paragraphs[:1]
