"""Records what pycocoevalcap computes for captions: `python record_captions.py`, with pycocoevalcap and Java.

It needs an environment of its own with `pip install pycocoevalcap==1.2`, and `java`, such as Debian's
default-jre-headless. It writes reference/hard_captions.json and reference/ordinary_captions.json.gz, which the tests
read. The captions are made up here.
"""

import gzip
import json
import os
import random
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

FOLDER = Path(__file__).parent / "reference"
SCENES, CAPTIONS = 500, 6  # the first caption of a scene is the prediction
WHO = """
    a man|a young woman|two men|a little girl in a pink dress|three people|a boy|a brown dog|two dogs|a black-and-white
    cat|a group of children|an old man with a beard|a skateboarder|the bride and groom|a baseball player|a woman's
    hand|several horses|a chef|people in T-shirts|a 5-year-old|a man and his dog|some sheep|a red double-decker bus|the
    children's teacher|a couple
"""
DOING = """
    riding a horse|standing next to a bus|playing frisbee|eating a slice of pizza|sitting on a bench|jumping over a
    fence|looking at a cell phone|holding an umbrella|running through the water|cutting a cake|waiting for the train|
    walking down the street|wearing a hat and sunglasses|throwing a ball|talking to each other|lying on a couch|
    flying a kite|doing a trick on a half-pipe|posing for a picture|that isn't moving|drinking O.J.|reading a book
"""
WHERE = """
    in a park|on a beach|at night|in front of a building|near the ocean|on a snowy hill|in a kitchen|on top of a
    mountain|beside a lake|in the middle of a city street|under a tree|behind a fence|in St. Louis|at 10:30 a.m.|
    next to a "STOP" sign|by the men's room|on Main St.|in Washington D.C.|in the late 1990's|at the zoo|in the grass
"""
FORMS = """
    {who} {doing} {where}.|{who} {doing} {where}|{who} is {doing} {where} .|there is {who}, {doing} {where}.|{where},
    {who} {doing}.|a photo of {who} {doing}...|{who} -- {doing} -- {where}.|it's {who} {doing}; it's {where}!|
    {who} (maybe {doing}) {where}.|I can see {who} who's {doing}.|"{who} {doing}"|this picture shows {who} {where},
    {doing}|{where} you'll find {who}|What is {who} {doing}?|{who} and {who} are {doing} {where}.|{who} {where} & a sign
"""
SMALL = {
    "one id": {"predictions": {"1": "a dog runs"}, "references": {"1": ["a dog runs", "the dog is running"]}},
    "empty": {
        "predictions": {"1": "", "2": "a cat sits on a mat", "3": "..."},
        "references": {"1": ["a dog"], "2": ["a cat sits on a mat", ""], "3": ["two birds fly", "birds"]},
    },
    "short": {
        "predictions": {"1": "dog", "2": "a cat", "3": "a a a a a a a a"},
        "references": {"1": ["dog"], "2": ["a cat", "the cat on the mat"], "3": ["a bird", "a a bird a a"]},
    },
    "equally close lengths": {
        "predictions": {"1": "a b c d e", "2": "x y z"},
        "references": {"1": ["a b c d", "a b c d e f"], "2": ["x y", "x y z z", "y"]},
    },
}


def choices(text):
    return [" ".join(choice.split()) for choice in text.split("|")]


def scenes():
    generator = random.Random(0)
    who, doing, where, forms = map(choices, (WHO, DOING, WHERE, FORMS))
    result = []
    for _ in range(SCENES):
        few = [generator.sample(words, 2) for words in (who, doing, where)]
        captions = []
        for _ in range(CAPTIONS):
            words = dict(zip(("who", "doing", "where"), map(generator.choice, few), strict=True))
            caption = generator.choice(forms).format(**words)
            captions.append(generator.choice([caption, caption[0].upper() + caption[1:]]))
        result.append(captions)
    return result


def figures(predictions, references):
    """Return pycocoevalcap's tokens and figures; both arguments map ids to texts, as for dreamkit_eval.metrics."""
    tokenizer = PTBTokenizer()
    found = tokenizer.tokenize({key: [{"caption": text}] for key, text in predictions.items()})
    expected = tokenizer.tokenize(
        {key: [{"caption": text} for text in texts] for key, texts in references.items()}
    )
    score, each = Cider().compute_score(expected, found)
    bleu, _ = Bleu(4).compute_score(expected, found, verbose=0)
    return {
        "prediction_tokens": [texts[0] for texts in found.values()],
        "reference_tokens": list(expected.values()),
        "cider": float(score),
        "cider_each": list(map(float, each)),
        "bleu": list(map(float, bleu)),
    }


def recorded(predictions, references):
    return {"predictions": predictions, "references": references, **figures(predictions, references)}


def main():
    os.environ["JAVA_TOOL_OPTIONS"] = "-Dfile.encoding=UTF-8"  # the default of Java 18, whatever the locale
    hard = (FOLDER / "hard_captions.txt").read_text("utf-8").rstrip("\n").split("\n")
    corpora = {
        "hard": recorded(
            {str(place): caption for place, caption in enumerate(hard)},
            {str(place): [hard[place - 1], f"{caption} yes", caption] for place, caption in enumerate(hard)},
        ),
        **{name: recorded(**corpus) for name, corpus in SMALL.items()},
    }
    text = json.dumps(corpora, indent=1, ensure_ascii=False)
    (FOLDER / "hard_captions.json").write_text(text + "\n", "utf-8")
    made = scenes()
    ordinary = recorded(
        {str(place): captions[0] for place, captions in enumerate(made)},
        {str(place): captions[1:] for place, captions in enumerate(made)},
    )
    data = gzip.compress(json.dumps(ordinary, ensure_ascii=False).encode(), mtime=0)
    (FOLDER / "ordinary_captions.json.gz").write_bytes(data)


if __name__ == "__main__":
    main()
