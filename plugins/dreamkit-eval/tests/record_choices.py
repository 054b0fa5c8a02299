"""Records figures of POPE, MME and MMBench: `python record_choices.py POPE LMMS_EVAL MME`, three git clones.

They are clones of RUCAIBox/POPE, EvolvingLMMs-Lab/lmms-eval and BradyFU/Awesome-Multimodal-Large-Language-Models (with
its branch Evaluation). It needs `pip install scikit-learn pandas loguru requests`, runs the scoring files of the
commits below on made-up answers, and writes reference/choices.json, which the tests read.
"""

import contextlib
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import types
import zipfile
from pathlib import Path

POPE_COMMIT, LMMS_COMMIT, MME_COMMIT = "3df3ba1", "75571cf", "dd29509"
TASKS = "lmms_eval/tasks"


def source(clone, commit, path):
    return subprocess.run(
        ["git", "-C", clone, "show", f"{commit}:{path}"], capture_output=True, check=True
    ).stdout


def loaded(clone, commit, path):
    module = types.ModuleType(Path(path).stem)
    exec(source(clone, commit, path), module.__dict__)
    return module


def pope_official(clone, answers, labels):
    """Return the figures that POPE's evaluate.py prints."""
    with tempfile.TemporaryDirectory() as folder:
        for name, key, texts in (("answers", "answer", answers), ("labels", "label", labels)):
            Path(folder, name).write_text("\n".join(json.dumps({key: text}) for text in texts))
        text = source(clone, POPE_COMMIT, "evaluate.py").decode()
        text = text.replace("ans_file = ''", f"ans_file = {folder + '/answers'!r}")
        text = text.replace("label_file = ''", f"label_file = {folder + '/labels'!r}")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(text, {})
    found = dict(re.findall(r"^(.*): (.*)$", printed.getvalue(), re.MULTILINE))
    names = {"Accuracy": "accuracy", "Precision": "precision", "Recall": "recall", "F1 score": "f1"}
    return {name: float(found[key]) for key, name in (names | {"Yes ratio": "yes_share"}).items()}


def pope_lmms_eval(clone, answers, labels):
    """Return lmms-eval's figures but its yes-ratio, which is that of the labels."""
    utils = loaded(clone, LMMS_COMMIT, f"{TASKS}/pope/utils.py")
    results = [
        utils.pope_process_results({"answer": label, "question_id": place}, [answer])["pope_accuracy"]
        for place, (answer, label) in enumerate(zip(answers, labels, strict=True))
    ]
    names = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "f1_score"}
    return {name: getattr(utils, f"pope_aggregate_{end}")(results) for name, end in names.items()}


def mme(clone, generator):
    """Return answers of every category and the figures of MME's calculation.py, both of its sums by lmms-eval too."""
    archive = zipfile.ZipFile(io.BytesIO(source(clone, MME_COMMIT, "tools/eval_tool.zip")))
    calculation = types.ModuleType("calculation")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(archive.read("eval_tool/calculation.py"), calculation.__dict__)
    correct, scores, sums = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for category in (name for names in calculation.eval_type_dict.values() for name in names):
            share = generator.random()
            correct[category] = {
                f"{place}.jpg": [generator.random() < share for _ in range(2)] for place in range(20)
            }
            lines = [
                "\t".join([image, "Is it?", label, label if right else generator.choice(["maybe", wrong])])
                for image, rights in correct[category].items()
                for right, label, wrong in zip(rights, ("yes", "no"), ("no", "yes"), strict=True)
            ]
            Path(folder, f"{category}.txt").write_text(
                "".join(f"{line}\n" for line in lines).replace("\tyes\n", "\tyes \n")
            )
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            calculation.calculate_metrics().process_result(folder)
    for kind, total, categories in re.findall(
        r"=+ (\w+) =+\ntotal score: (\S+) \n((?:.+\n|\n(?!=))*)", printed.getvalue()
    ):
        sums[kind.lower()] = float(total)
        scores |= {
            name: float(score)
            for name, score in re.findall(r"^\t (\w+)  score: (\S+)$", categories, re.MULTILINE)
        }
    return {"correct": correct, "scores": scores, **sums}


def mmbench(clone, generator):
    """Return circular answers and the figures of lmms-eval's evaluator, which reads letters."""
    evaluator = loaded(clone, LMMS_COMMIT, f"{TASKS}/mmbench/mmbench_evals.py").MMBench_Evaluator()
    correct, categories, rows = {}, {}, []
    for question in range(120):
        number = generator.choice([2, 3, 4])
        correct[question] = [generator.random() < 0.85 for _ in range(number)]
        categories[question] = generator.choice(["color", "ocr", "spatial_relationship", "future_prediction"])
        for rotation, right in enumerate(correct[question]):
            answer = generator.randrange(number)
            given = answer if right else (answer + 1) % number
            choices = {
                letter: f"choice {letter}" if place < number else None for place, letter in enumerate("ABCD")
            }
            rows.append(
                {
                    "index": question + rotation * 1_000_000,
                    "answer": "ABCD"[answer],
                    "prediction": "ABCD"[given],
                }
                | {"question": "?", "category": categories[question], "L2-category": "all", **choices}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        overall, each, _ = evaluator.eval_result(rows, eval_method="static")
    return {"correct": correct, "categories": categories, "overall": float(overall), "each": each}


def main():
    pope, lmms, mme_clone = sys.argv[1:]
    generator = random.Random(0)
    labels = [generator.choice(["yes", "no"]) for _ in range(200)]
    parsed = [
        label if generator.random() < 0.7 else generator.choice(["yes", "yes", "no"]) for label in labels
    ]
    others = [
        generator.choice([answer, answer, answer.upper(), f" {answer}", "maybe", ""]) for answer in parsed
    ]
    records = {
        "pope": {"answers": parsed, "labels": labels, "figures": pope_official(pope, parsed, labels)},
        "pope unparsed": {
            "answers": others,
            "labels": labels,
            "figures": pope_lmms_eval(lmms, others, labels),
        },
        "mme": mme(mme_clone, generator),
        "mmbench": mmbench(lmms, generator),
    }
    (Path(__file__).parent / "reference" / "choices.json").write_text(json.dumps(records) + "\n")


if __name__ == "__main__":
    main()
