"""The words of the synthetic questions: clues, phrase patterns and carrier sentences.

The WORDING is disjoint between the splits: every split has its own phrase patterns and its own
carrier sentences, and no text can occur in two splits for the same kind of question.  Attribute
words ("red", "circle", "largest") and clue nouns ("a ripe tomato") are shared on purpose: a tiny
model knows nothing of the world and can only recognise clues it was taught.  The patterns of val
and test are built from words that also occur in those of train.

Placeholders: ``{n}`` is "shape" or "shapes"; ``{is}``, ``{has}``, ``{look}`` agree with it; all
others are filled in by the maker of the question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from string import Formatter
from typing import Final

import numpy as np

SPLITS: Final[tuple[str, ...]] = ("train", "val", "test")

# Each word pair or clue may stand after "the colour of".
COLOUR_CLUES: Final[dict[str, tuple[str, ...]]] = {
    "red": ("a ripe tomato", "a fire engine", "a strawberry"),
    "orange": ("a carrot", "a pumpkin", "a basketball"),
    "yellow": ("a lemon", "a ripe banana", "a canary"),
    "green": ("fresh grass", "a frog", "spinach"),
    "blue": ("the sky at noon", "the deep sea", "a pair of jeans"),
    "purple": ("an aubergine", "a field of lavender", "a ripe plum"),
    "pink": ("a flamingo", "bubble gum", "a piglet"),
    "white": ("fresh snow", "a glass of milk", "a swan"),
}
FORM_CLUES: Final[dict[str, tuple[str, ...]]] = {
    "circle": ("a wheel", "a coin", "the full moon"),
    "square": ("a chessboard field", "the face of a dice", "a bathroom tile"),
    "triangle": ("a pizza slice", "a tent seen from the front", "a pyramid"),
    "star": ("a twinkle in the night sky", "the badge of a sheriff", "the top of a Christmas tree"),
    "hexagon": ("a honeycomb cell", "the head of a bolt", "a nut on a screw"),
    "cross": ("a first-aid sign", "a plus sign", "the sign of an ambulance"),
}
SIZE_CLUES: Final[dict[str, tuple[str, ...]]] = {
    "largest": (
        "would need the most paint",
        "would take the longest to paint",
        "would weigh the most if all were cut from one board",
    ),
    "smallest": (
        "would need the least paint",
        "would be the quickest to paint",
        "would weigh the least if all were cut from one board",
    ),
}
POSITION_CLUES: Final[dict[str, tuple[str, ...]]] = {
    "top": (
        "would be reached first by a bird on its way down from the sky",
        "would be the nearest to the sun at noon",
    ),
    "bottom": (
        "would be reached first by an ant on its way up from the ground",
        "would be reached first by the rising water of a flood",
    ),
    "left": ("would come first if this were a line of English text",),
    "right": ("would come last if this were a line of English text",),
    "centre": ("would be hit by a dart if the picture were a dart board",),
}

# Sentences around a noun phrase X that may be one shape or several.
CARRIERS: Final[dict[str, tuple[str, ...]]] = {
    "train": (
        "Find the {X}.",
        "Look at the picture and find the {X}.",
        "Where {is} the {X} in this picture?",
        "Please mark the {X}.",
        "Can you show me the {X}?",
        "I am looking for the {X}, can you help?",
        "Point out the {X} in this picture.",
        "What part of the image is covered by the {X}?",
        "Please segment the {X} in this image.",
        "Show me where the {X} can be found.",
        "Which pixels belong to the {X}?",
        "Tell me where to look for the {X}.",
        "Could you outline the {X} for me?",
        "Which part of this would you call the {X}?",
    ),
    "val": (
        "Please show me the {X} in this picture.",
        "Look at this image and mark the {X}.",
        "Can you find the {X} for me?",
        "Tell me which pixels to mark for the {X}.",
        "Could you point out the {X}?",
    ),
    "test": (
        "Please find the {X} in this image.",
        "Can you mark the {X} in the picture?",
        "Show me the {X}, please.",
        "Which pixels of the image are covered by the {X}?",
        "Please help me to find the {X}.",
    ),
}

_PREDICATE: Final[dict[str, tuple[str, ...]]] = {
    "train": ("{n} that {clue}", "one that {clue}", "part of the picture that {clue}"),
    "val": ("one shape that {clue}", "one of these that {clue}"),
    "test": ("shape in the picture that {clue}", "one in this picture that {clue}"),
}
# Noun phrases, without "the" in front.  A key is a kind, or "kind:variant".
PHRASES: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "colour": {
        "train": (
            "{colour} {n}",
            "{n} painted {colour}",
            "{n} of the colour {colour}",
            "{colour} coloured {n}",
            "{n} that {look} {colour}",
        ),
        "val": ("{n} that {is} {colour}", "{n} that {is} painted {colour}"),
        "test": ("{n} coloured {colour}", "{n} of {colour} colour"),
    },
    "shape": {
        "train": (
            "{noun}",
            "{n} in the form of a {form}",
            "{n} with the outline of a {form}",
            "{noun} of any size",
        ),
        "val": ("{n} with the form of a {form}", "{n} that {is} like a {form}"),
        "test": ("{n} that {has} the form of a {form}", "{n} that {look} like a {form}"),
    },
    "texture": {
        "train": (
            "{texture} {n}",
            "{n} with a {texture} surface",
            "{n} that {look} {texture}",
            "{n} with a {texture} texture",
        ),
        "val": ("{n} that {is} {texture}", "{n} of {texture} texture"),
        "test": ("{n} that {has} a {texture} surface", "{n} that {has} a {texture} texture"),
    },
    "colour-shape": {
        "train": (
            "{adjective} {noun}",
            "{noun} with {adjective} paint",
            "{noun} with a {adjective} surface",
            "{noun} that {look} {adjective}",
        ),
        "val": ("{noun} that {is} {adjective}", "{adjective} {n} with the form of a {form}"),
        "test": (
            "{noun} that {has} a {adjective} surface",
            "{adjective} {n} in the form of a {form}",
        ),
    },
    "size": {
        "train": (
            "{most} {noun}",
            "{noun} of the {most} size",
            "{most} {noun} of all",
            "{most} {noun} in this picture",
        ),
        "val": ("{noun} that is the {most}", "{noun} with the {most} size"),
        "test": ("{noun} that has the {most} size", "{noun} that is the {most} of all"),
    },
    "position": {
        "train": (
            "{most} {noun}",
            "{noun} nearest to the {edge}",
            "{noun} closest to the {edge} of the picture",
            "{most} {noun} of all",
        ),
        "val": ("{noun} that is nearest to the {edge}", "{noun} that is the {most}"),
        "test": (
            "{noun} closest to the {edge}",
            "{noun} that lies nearest to the {edge} of the picture",
        ),
    },
    "relation": {
        "train": (
            "{noun} {side} the {reference}",
            "{noun} that lies {side} the {reference}",
            "{noun} placed {side} the {reference}",
        ),
        "val": (
            "{noun} that is {side} the {reference}",
            "{noun} that is placed {side} the {reference}",
        ),
        "test": (
            "{noun} that can be found {side} the {reference}",
            "{noun} found {side} the {reference}",
        ),
    },
    "counting:only": {
        "train": ("only {noun}", "single {noun}", "only {noun} of the picture"),
        "val": ("one and only {noun}", "{noun} that is the only one"),
        "test": ("single {noun} of the picture", "only {noun} to be found"),
    },
    "counting:times": {
        "train": (
            "{n} of the {attribute} that appears exactly {times}",
            "{n} whose {attribute} appears exactly {times}",
            "{n} with the {attribute} seen exactly {times}",
        ),
        "val": (
            "{n} with the {attribute} that appears exactly {times}",
            "{n} whose {attribute} is seen exactly {times}",
        ),
        "test": (
            "{n} of the {attribute} seen exactly {times}",
            "{n} that {has} the {attribute} seen exactly {times}",
        ),
    },
    "counting:most": {
        "train": (
            "{n} of the most common {attribute}",
            "{n} with the most common {attribute}",
            "{n} whose {attribute} is the most common",
        ),
        "val": (
            "{n} that {has} the most common {attribute}",
            "{n} with the {attribute} that is the most common",
        ),
        "test": (
            "{n} of the {attribute} that is the most common",
            "{n} whose {attribute} appears the most",
        ),
    },
    "negation:not": {
        "train": (
            "{n} that {is} not {quality}",
            "{n} that cannot be called {quality}",
            "{n} other than the {group}",
        ),
        "val": ("{n} that could not be called {quality}", "{n} except the {group}"),
        "test": ("{n} that you would not call {quality}", "{n} not to be called {quality}"),
    },
    "negation:only": {
        "train": (
            "only {n} that {is} not {quality}",
            "one {n} that {is} not {quality}",
            "only {n} that cannot be called {quality}",
        ),
        "val": ("only {n} that could not be called {quality}", "only {n} other than the {group}"),
        "test": ("only {n} that you would not call {quality}", "one {n} other than the {group}"),
    },
    "negation:without": {
        "train": ("{n} without {marks}", "{n} that {has} no {marks}", "{n} free of {marks}"),
        "val": ("{n} with no {marks}", "{n} that {is} seen without {marks}"),
        "test": ("{n} that {is} free of {marks}", "{n} that {is} without {marks}"),
    },
    "colour-clue": {
        "train": (
            "{n} with the colour of {clue}",
            "{n} coloured like {clue}",
            "{n} with the same colour as {clue}",
        ),
        "val": ("{n} that {has} the colour of {clue}", "{n} of the same colour as {clue}"),
        "test": ("{n} painted like {clue}", "{n} that {is} coloured like {clue}"),
    },
    "shape-clue": {
        "train": (
            "{n} with the form of {clue}",
            "{n} with an outline like {clue}",
            "{n} with the same form as {clue}",
        ),
        "val": ("{n} that {has} the form of {clue}", "{n} of the same form as {clue}"),
        "test": ("{n} in the form of {clue}", "{n} with the outline of {clue}"),
    },
    "size-clue": _PREDICATE,
    "position-clue": _PREDICATE,
}

_ASK_PREDICATE: Final[dict[str, tuple[str, ...]]] = {
    "train": (
        "Which shape {clue}?",
        "Which of these shapes {clue}?",
        "Tell me which shape {clue}.",
        "Look at the picture: which one {clue}?",
    ),
    "val": ("Which one {clue}?", "Can you tell me which shape {clue}?"),
    "test": ("Which one of these {clue}?", "Please tell me which one {clue}."),
}
# Whole sentences that suit only one kind; the carriers suit every kind.
SENTENCES: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "negation:not": {
        "train": (
            "Mark everything except the {group}.",
            "Leave out the {group} and mark the rest.",
            "Which {n} {is} not {quality}?",
        ),
        "val": ("Find everything except the {group}.", "Leave out the {group} and find the rest."),
        "test": (
            "Please show me everything except the {group}.",
            "Look for the rest, not for the {group}.",
        ),
    },
    "colour-clue": {
        "train": (
            "Which of these would you pick if you wanted the colour of {clue}?",
            "If you had to paint {clue}, which {n} would have the right colour?",
            "Think of {clue}: which {n} {has} the same colour?",
        ),
        "val": (
            "Which of these would you pick to paint {clue}?",
            "Think of the colour of {clue}: where would you find the same?",
        ),
        "test": (
            "Which of these would have the right colour for {clue}?",
            "Which {n} would you pick if you had to paint {clue}?",
        ),
    },
    "shape-clue": {
        "train": (
            "Which of these would you pick if you wanted the form of {clue}?",
            "If you had to draw {clue}, which {n} would have the right form?",
            "Think of {clue}: which {n} {has} the same outline?",
        ),
        "val": (
            "Which of these would you pick to draw {clue}?",
            "Think of the form of {clue}: where would you find the same?",
        ),
        "test": (
            "Which of these would have the right form for {clue}?",
            "Which {n} would you pick if you had to draw {clue}?",
        ),
    },
    "size-clue": _ASK_PREDICATE,
    "position-clue": _ASK_PREDICATE,
}


def plural(noun: str) -> str:
    """The plural of a form's name or of "red shape"."""
    return noun + ("es" if noun.endswith("s") else "s")


def agreement(many: bool) -> dict[str, str]:
    """The placeholders that depend on the number of targets alone."""
    if many:
        return {"n": "shapes", "is": "are", "has": "have", "look": "look"}
    return {"n": "shape", "is": "is", "has": "has", "look": "looks"}


def render(
    rng: np.random.Generator,
    key: str,
    slots: dict[str, str],
    many: bool,
    split: str,
    sentence: bool,
) -> tuple[str, ...]:
    """One to four different texts for one question.

    ``key`` is a key of ``PHRASES``, ``slots`` fills its placeholders, ``many`` tells whether
    several shapes are meant.  Sentences mix carriers with the kind's own sentences.
    """
    words = agreement(many) | slots
    phrases = PHRASES[key][split]
    own = SENTENCES.get(key, {}).get(split, ())
    texts: list[str] = []
    for _ in range(int(rng.integers(1, 5))):
        pattern = phrases[int(rng.integers(len(phrases)))]
        if sentence and own and rng.random() < 0.5:
            pattern = own[int(rng.integers(len(own)))]
        elif sentence:
            carrier = CARRIERS[split][int(rng.integers(len(CARRIERS[split])))]
            pattern = carrier.replace("{X}", pattern)
        text = pattern.format_map(words)
        if text not in texts:
            texts.append(text)
    return tuple(texts)


def tokens(text: str) -> list[str]:
    """The lower-case words of ``text``, punctuation dropped."""
    return re.findall(r"[a-z]+(?:[-'][a-z]+)*", text.lower())


def patterns(split: str) -> Iterator[str]:
    """Every pattern of a split, placeholders removed."""
    groups = [CARRIERS[split]]
    groups += [table[split] for source in (PHRASES, SENTENCES) for table in source.values()]
    for group in groups:
        for pattern in group:
            yield "".join(literal for literal, *_ in Formatter().parse(pattern))
