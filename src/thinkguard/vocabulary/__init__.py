"""What each token id of a tokenizer spells, read from the files and objects that tokenizers come as."""

from thinkguard.vocabulary.vocabulary import TokenFlag, Vocabulary

__all__ = ["TokenFlag", "Vocabulary"]
