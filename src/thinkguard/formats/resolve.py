"""What `format=` means for a tokenizer: a ThinkFormat, a family's name, or what the tokenizer itself shows."""

from __future__ import annotations

from thinkguard.formats.detect import detect
from thinkguard.formats.fit import fit
from thinkguard.formats.format import ThinkFormat
from thinkguard.formats.renders import Renders
from thinkguard.vocabulary import Vocabulary


def detect_format(tokenizer: object, chat_template: str | None = None, *, renders: Renders | None = None) -> ThinkFormat:
    """Find the format that a tokenizer and its chat template (or the given one) agree on.

    `evidence` of the result says why. FormatError, with the candidates, if there are no markers or several. Renders the
    template a few dozen times (tens of milliseconds), in a sandbox; needs jinja2, without which the template is only read.
    With `renders`, which another process made of the template, it is not rendered here.
    """
    return detect(Vocabulary.from_tokenizer(tokenizer), chat_template, renders=renders)


def resolve_format(
    format: ThinkFormat | str | None, tokenizer: object, *, renders: Renders | None = None
) -> ThinkFormat:
    """Return what `format=` means: None is detected, a name is looked up and fitted, a ThinkFormat is itself.

    Fitted: the header's text and the turn's ends come from the tokenizer's chat template where it has one, and of several
    spellings of the markers the one that the vocabulary has comes first.
    """
    if format is None:
        return detect_format(tokenizer, renders=renders)
    if isinstance(format, ThinkFormat):
        return format
    return fit(ThinkFormat.from_name(format), Vocabulary.from_tokenizer(tokenizer), renders=renders)
