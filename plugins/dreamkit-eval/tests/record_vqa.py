"""Records accuracies of made-up visual answers: `python record_vqa.py VQA LMMS_EVAL`, two git clones.

VQA is a clone of GT-Vision-Lab/VQA, LMMS_EVAL one of EvolvingLMMs-Lab/lmms-eval. It needs Python 3.10 or newer alone,
runs the scoring files of the commits below, and writes reference/vqa.json, which the tests read.
"""

import copy
import json
import random
import re
import subprocess
import sys
import types
from pathlib import Path

OFFICIAL = "PythonEvaluationTools/vqaEvaluation/vqaEval.py"
COMMITS = {"official": "a013f00", "official-2016": "458a8b2"}
LMMS_COMMIT = "75571cf"
TASKS = "lmms_eval/tasks"
QUESTIONS = 300
# Answers in a row are ways to write nearly the same.
ANSWERS = """
    yes|Yes|YES|yes.| yes |yes!|yes, |yeah
    no|No|not|none|0|zero
    two|2|Two|2.|two.|the two|2 dogs|two dogs
    a dog|the dog|dog|Dog|dog.|dogs|an dog|dog's|dog 's|a dog, the dog
    don't|dont|Don't|do not|don't.
    isn't|isnt|Isn't|is n't
    couldn't've|couldn'tve|couldnt've|couldntve
    somebody'd|somebodyd|somebodyd've|somebody'dve
    1,000|1000|1 000|1,,000|1,000,000|1,000 people|1,000 people!|1,,000 (people)
    black-and-white|black and white|black, white|black,white|black & white
    t-shirt|t shirt|tshirt|t-shirt.|T-Shirt
    3.5|3,5|3.|.5|3 . 5|3.5.
    hello, world|hello,world|hello world|hello ,world|hello; world|hello;world
    U.S.|us|U.S|u s|U.S.A.
    new\\nyork|new york|new\\tyork|New York |new  york
    left/right|left / right|left right|leftright|(left)|[left]|left
    what?|what|what? |?what|who's?|who's|whos|who is
    it's|its|it is|it 's|its'
    |a|the|an|.|!|...
    "stop"|stop|'stop'|stop sign|`stop`|STOP_SIGN
    $5|5$|5|five|five dollars|5 dollars
    10:30|ten thirty|10 30|10:30 am|10:30am
    café|cafe|CAFÉ|İstanbul|istanbul
    unanswerable|Unanswerable|un-answerable|unsuitable
"""


def rows():
    # Line breaks and tabs are written as escapes, and a row begins after its indentation.
    lines = [line[4:] for line in ANSWERS.strip("\n").split("\n")]
    return [
        [text.encode().decode("unicode_escape") if "\\" in text else text for text in line.split("|")]
        for line in lines
    ]


def questions(contractions):
    generator = random.Random(0)
    result = []
    for _ in range(QUESTIONS):
        texts = generator.choice(rows())
        if generator.random() < 0.3:
            texts = texts + generator.choice(rows())
        few = generator.sample(texts, min(len(texts), generator.choice([1, 2, 2, 3, 4])))
        number = generator.choice([10] * 8 + [1, 3])
        result.append((generator.choice(few + texts), [generator.choice(few) for _ in range(number)]))
    # Each contraction, and more periods than the sources remove.
    result += [(word, [whole, whole, whole, f"{word}?", "other"]) for word, whole in contractions.items()]
    result.append((". a" * 40, [". a" * 40] * 3 + ["a " * 40] * 3 + ["x"]))
    return result


def source(clone, commit, path):
    command = ["git", "-C", clone, "show", f"{commit}:{path}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def official(clone, commit, number):
    """Return a function of an answer and answers: the accuracy of vqaEval.py, which is written for Python 2."""
    names = {}
    exec(re.sub(r'print (".*")', r"print(\1)", source(clone, commit, OFFICIAL)), names)
    cls = names["VQAEval"]

    def accuracy(answer, answers):
        people = [{"answer": text, "answer_id": place} for place, text in enumerate(answers)]
        truth = types.SimpleNamespace(
            getQuesIds=lambda: [0], qa={0: {"answers": people, "question_type": "", "answer_type": ""}}
        )
        evaluation = cls(truth, types.SimpleNamespace(qa={0: {"answer": answer}}), n=number)
        evaluation.updateProgress = lambda progress: None
        evaluation.evaluate()
        return evaluation.evalQA[0] / 100

    return accuracy, cls(types.SimpleNamespace(getQuesIds=list), None).contractions


def module(name, text="", **names):
    made = sys.modules[name] = types.ModuleType(name)
    made.__dict__.update(names)
    exec(text, made.__dict__)
    return made


def lmms_eval(clone):
    """Return the `process_results` functions of VQAv2 and TextVQA, in modules without lmms-eval's own imports."""
    for name in ("lmms_eval", "lmms_eval.tasks", "lmms_eval.tasks._task_utils"):
        module(name)
    module("loguru", logger=None)
    utils = module("lmms_eval.tasks._task_utils.file_utils", generate_submission_file=None)
    sys.modules["lmms_eval.tasks._task_utils"].file_utils = utils
    sys.modules["lmms_eval.tasks"]._task_utils = sys.modules["lmms_eval.tasks._task_utils"]
    sys.modules["lmms_eval"].tasks = sys.modules["lmms_eval.tasks"]
    metric = source(clone, LMMS_COMMIT, f"{TASKS}/_task_utils/vqa_eval_metric.py")
    module("lmms_eval.tasks._task_utils.vqa_eval_metric", metric)
    vqav2 = module("vqav2", source(clone, LMMS_COMMIT, f"{TASKS}/vqav2/utils.py"))
    textvqa = module("textvqa", source(clone, LMMS_COMMIT, f"{TASKS}/textvqa/utils.py"))

    def of_vqav2(answer, answers):
        people = [{"answer": text, "answer_id": place} for place, text in enumerate(answers)]
        return vqav2.vqav2_process_results({"answers": people, "question_id": 0}, [answer])["exact_match"]

    def of_textvqa(answer, answers):
        return textvqa.textvqa_process_results({"answers": answers, "question_id": 0}, [answer])[
            "exact_match"
        ]

    return of_vqav2, of_textvqa


def main():
    vqa, lmms = sys.argv[1:]
    functions = {}
    for rules, commit in COMMITS.items():
        functions[rules], contractions = official(vqa, commit, 12)
    functions["lmms-eval"], functions["evalai"] = lmms_eval(lmms)
    made = questions(contractions)
    records = [
        {
            "answer": answer,
            "answers": answers,
            **{
                rules: float(accuracy(answer, copy.deepcopy(answers)))
                for rules, accuracy in functions.items()
            },
        }
        for answer, answers in made
    ]
    text = "[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n]\n"
    (Path(__file__).parent / "reference" / "vqa.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
