"""The decision guide as data: for each question rules in order, of which the first that applies answers.

A rule is plain: an answer, when it applies, and why, as a text with the situation's figures in it. To change the
advice, change a rule or a threshold here; nothing else decides. Where a figure is ours and not of the literature,
`source` says "edgekd".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from edgekd.advisor.situation import Situation
from edgekd.distill.chain import ONE_ASSISTANT_FROM, PARAMETERS_PER_LINK, SEVERAL_FROM

Question = Literal["distil at all", "mechanism", "capacity gap", "knowledge", "recipe", "deployment"]
Answers = Mapping[Question, str]

# Performance ratio: teacher / student alone. Below the first they are peers: the guide says "about equal"; published
# CIFAR-100 pairs with 1.03 to 1.1 still gain 0.8 to 6 points from an offline teacher. From the second on one assistant,
# from the third on several. Parameters: a gap that asks for assistants where a shortfall was measured.
PEERS_BELOW = 1.03
DIRECT_UP_TO, ASSISTANTS_FROM = 2.0, PARAMETERS_PER_LINK
FEW_IMAGES_PER_CLASS = 100.0  # edgekd: docs/advisor.md has what was measured at 20
ROBUST_FROM = 0.1  # edgekd: share of attacked images from which a teacher has robustness to hand on
CHANCE_FACTOR = 1.5  # a teacher under so many times chance knows nothing of these data
GUIDE = "decision guide"


@dataclass(frozen=True)
class Rule:
    """One line of the guide. `why` may name: gap shortfall per_class teacher robust families teachers classes."""

    answer: str
    applies: Callable[[Situation, Answers], bool]
    why: str
    source: str = GUIDE


def _needs(*needs: str) -> Callable[[Situation, Answers], bool]:
    return lambda s, _: bool(set(needs) & set(s.needs))


def _said(question: Question, *answers: str) -> Callable[[Situation, Answers], bool]:
    return lambda _, said: said[question] in answers


def _always(_situation: Situation, _answers: Answers) -> bool:
    return True


def _measured(least: float, below: float = float("inf")) -> Callable[[Situation, Answers], bool]:
    return lambda s, _: s.shortfall is not None and least <= s.shortfall < below


DISTIL_AT_ALL = (
    Rule(
        "no",
        _needs("interpretability"),
        "the decisions must be explained, and a distilled net explains no more than its teacher: fit a tree or a "
        "linear model to the teacher's answers instead",
    ),
    Rule(
        "no",
        lambda s, _: not s.original_data,
        "there is not one image; data-free methods need a generator, which edgekd has not (published on CIFAR-100: 4 "
        "to 33 points below the student trained on the images): collect unlabelled images of the domain, then "
        "--labels none",
    ),
    Rule(
        "no",
        lambda s, _: s.modality == "unpaired",
        "teacher and student read different kinds of input, and nothing says which belong together: pair the samples, "
        "or translate one kind into the other first",
    ),
    Rule(
        "no",
        lambda s, _: (
            s.teachers > 0 and s.teacher_accuracy is not None and s.teacher_accuracy <= CHANCE_FACTOR / s.classes
        ),
        "the teacher is right on {teacher} of these images, no more than chance for {classes} classes: check its "
        "classes' order and its normalisation, or take another",
    ),
    Rule("yes", _always, "teacher and student solve the same problem on images that are at hand"),
)

MECHANISM = (
    Rule("self", lambda s, _: s.teachers == 0, "there is no teacher: the student learns from itself"),
    Rule("alignment", lambda s, _: s.modality == "paired", "the teacher reads another kind of input of the same scene"),
    Rule(
        "online",
        _measured(0.0, PEERS_BELOW),
        f"the teacher is only {{shortfall}} times as accurate as the student alone (peers below {PEERS_BELOW:g}): "
        "students that learn together gain more",
    ),
    Rule("offline", _always, "a trained teacher stands ready, so it teaches as it is"),
)

CAPACITY_GAP = (
    Rule("none", _said("mechanism", "self", "online"), "learners of one size"),
    Rule(
        "several assistants",
        _measured(SEVERAL_FROM),
        f"the teacher is {{shortfall}} times as accurate as the student alone (several steps from {SEVERAL_FROM:g})",
    ),
    Rule(
        "one assistant",
        _measured(ONE_ASSISTANT_FROM, SEVERAL_FROM),
        f"the teacher is {{shortfall}} times as accurate as the student alone (one assistant from "
        f"{ONE_ASSISTANT_FROM:g}); keep it only if it beats direct distillation of the same total time",
    ),
    Rule(
        "direct",
        _measured(0.0, ONE_ASSISTANT_FROM),
        "the teacher is {shortfall} times as accurate as the student alone, which direct distillation bridges",
    ),
    Rule(
        "direct",
        lambda s, _: s.gap is not None and s.gap >= ASSISTANTS_FROM,
        "{gap} times the student's parameters would ask for an assistant, but no shortfall was measured, and an "
        "assistant costs a second training: `--baseline` measures it, `edgekd advise --after RUN` reads it",
        "edgekd: evidence before cost",
    ),
    Rule(
        "direct",
        lambda s, _: s.gap is not None and s.gap < 1,
        "the teacher is smaller than the student ({gap} times its parameters): if the student alone does as well, they "
        "are peers; `--baseline` measures it",
        "edgekd: evidence before cost",
    ),
    Rule(
        "direct",
        lambda s, _: s.gap is not None and s.gap <= DIRECT_UP_TO,
        "{gap} times the student's parameters: no gap to speak of",
    ),
    Rule(
        "direct",
        lambda s, _: s.gap is not None,
        f"{{gap}} times the student's parameters, under the {ASSISTANTS_FROM:g} from which assistants may pay",
    ),
    Rule("direct", _always, "nothing is known of the teacher's size, and no shortfall was measured"),
)

KNOWLEDGE = (
    Rule("response", lambda s, _: s.black_box, "the teacher shows only logits"),
    Rule("response", _needs("robustness"), "what must carry over is the decision under attack"),
    Rule("response", _needs("calibration"), "the teacher's uncertainty lies in its softened answers"),
    Rule(
        "multi-level",
        lambda s, _: {"features", "structure"} <= set(s.needs),
        "features and their relations are both wanted",
    ),
    Rule("feature", _needs("features"), "the representation itself will be used, not only the decision"),
    Rule("relation", _needs("structure"), "distances between images matter (retrieval, clustering)"),
    Rule(
        "relation",
        _said("mechanism", "alignment"),
        "only what both kinds of input say of a scene can be compared: pairs against other pairs",
    ),
    Rule(
        "response",
        lambda s, _: not s.same_family and s.teachers > 0,
        "{families}: positions and channels of their features do not correspond",
    ),
    Rule("response", lambda s, _: s.teachers != 1, "decisions can be mixed whatever the nets look like"),
    Rule("multi-level", _always, "{families}: decisions, and one feature map through a projector"),
)

RECIPE = (
    Rule("", _said("distil at all", "no"), "none, for the reason above"),
    Rule(
        "adversarial-training",
        lambda s, _: s.teachers == 0 and s.labels == "clean" and "robustness" in s.needs,
        "nobody has robustness to hand on: the student learns the labels of attacked images",
        "Madry et al. 2018",
    ),
    Rule(
        "temporal-ensembling",
        lambda s, said: said["mechanism"] == "self" and s.labels != "clean",
        "averaged past predictions outvote wrong labels",
        "Laine & Aila 2017, section 4.3 (corrupted labels)",
    ),
    Rule(
        "byot",
        lambda s, said: said["mechanism"] == "self" and "features" in s.needs,
        "the deepest layer teaches the shallow ones",
        "Zhang et al. 2019",
    ),
    Rule(
        "progressive-self",
        _said("mechanism", "self"),
        "its own past predictions, at the cost of a plain training",
        "Kim et al. 2021",
    ),
    Rule(
        "crd",
        _said("mechanism", "alignment"),
        "contrast on paired samples aligns what the two have in common",
        "Tian et al. 2020, section 4.2 (cross-modal transfer)",
    ),
    Rule("mutual-learning", _said("mechanism", "online"), "three peers, each the others' teacher", "Zhang et al. 2018"),
    Rule(
        "adversarial-training",
        lambda s, _: "robustness" in s.needs and s.teacher_robust is not None and s.teacher_robust < ROBUST_FROM,
        "the teacher is right on {robust} of attacked images: it has no robustness to hand on, and its answers would "
        "only stand for labels (or take a teacher that was trained on attacked images)",
        "Madry et al. 2018; Goldblum et al. 2020",
    ),
    Rule(
        "ard",
        lambda s, _: "robustness" in s.needs and s.teacher_robust is not None,
        "the teacher stays right on {robust} of attacked images, and the student matches its plain answer on attacked "
        "images",
        "Goldblum et al. 2020",
    ),
    Rule(
        "ard",
        _needs("robustness"),
        "the student matches the teacher's plain answer on attacked images. That the teacher is robust itself was not "
        "measured (--measure does) and decides",
        "Goldblum et al. 2020",
    ),
    Rule(
        "multi-teacher-confidence",
        lambda s, _: s.teachers > 1 and s.labels != "clean",
        "{teachers} teachers, and labels that cannot say which is right: who is sure counts more",
    ),
    Rule(
        "ca-mkd",
        lambda s, _: s.teachers > 1,
        "{teachers} teachers, weighted for each image by how right they are",
        "Zhang, Chen & Wang 2022",
    ),
    Rule(
        "teacher-assistant",
        _said("capacity gap", "one assistant", "several assistants"),
        "a chain of nets of sizes in between",
        "Mirzadeh et al. 2020",
    ),
    Rule(
        "function-matching",
        lambda s, _: s.labels != "clean",
        "no label is read: the teacher answers to images mixed in pairs",
        "Beyer et al. 2022",
    ),
    Rule(
        "soft-targets-hint",
        lambda s, said: (
            s.images_per_class < FEW_IMAGES_PER_CLASS
            and said["knowledge"] == "multi-level"
            and not {"training-time", "calibration"} & set(s.needs)
        ),
        f"{{per_class}} images a class (few below {FEW_IMAGES_PER_CLASS:g}): a hint says more about an image than its "
        "label; give the student every unlabelled image of the domain too",
        "edgekd: docs/advisor.md",
    ),
    Rule(
        "cached-teacher",
        _needs("training-time"),
        "the teacher answers once for each image and view, and is read from disk afterwards",
        "edgekd: half the step of a live teacher",
    ),
    Rule(
        "soft-targets",
        _needs("calibration"),
        "softened answers at nine tenths of the loss keep the teacher's uncertainty",
        "Hinton et al. 2015",
    ),
    Rule(
        "vitkd",
        lambda s, said: said["knowledge"] == "feature" and s.teacher_family == s.student_family == "transformer",
        "shallow tokens are mimicked, a deep layer is generated",
        "Yang et al. 2024",
    ),
    Rule(
        "review-kd",
        lambda s, said: said["knowledge"] == "feature" and s.same_family,
        "every student stage learns from the teacher's stages below it",
        "Chen et al. 2021",
    ),
    Rule(
        "attention-transfer",
        _said("knowledge", "feature"),
        "{families}: where a net looks can be compared, channels cannot",
        "Zagoruyko & Komodakis 2017",
    ),
    Rule("rkd", _said("knowledge", "relation"), "distances and angles between images", "Park et al. 2019"),
    Rule(
        "deit",
        lambda s, said: said["knowledge"] == "response" and s.student_family == "transformer" and not s.same_family,
        "the teacher's decision as a second label brings a convolution's bias into the transformer",
        "Touvron et al. 2021 (DeiT-Ti 72.2 -> 74.5)",
    ),
    Rule(
        "dist",
        lambda s, said: said["knowledge"] == "response" and not s.same_family and not s.black_box and s.classes > 2,
        "correlations instead of values: the logits of unlike nets differ in scale",
        "Huang et al. 2022 (Swin-L -> ResNet-50 80.2, soft targets 80.0, alone 78.5)",
    ),
    Rule(
        "soft-targets",
        lambda s, said: said["knowledge"] == "response" and s.classes <= 2,
        "with two classes there is no dark knowledge between the wrong ones to decouple",
        "edgekd",
    ),
    Rule(
        "dkd",
        _said("knowledge", "response"),
        "target and non-target knowledge apart",
        "Zhao et al. 2022 (15 published CIFAR-100 pairs: 0.8 to 3.0 points over soft targets)",
    ),
    Rule(
        "soft-targets-hint",
        _always,
        "soft targets, labels and one hint; what edgekd's own figures were measured with",
        "Hinton et al. 2015; Romero et al. 2015",
    ),
)

DEPLOYMENT = (
    Rule(
        "a smaller student or int8",
        _needs("latency"),
        "no recipe makes the student faster: all that teaching adds is dropped at export (of the methods only simkd "
        "keeps a projector, and is not advised). Lower --latency-ms or take an int8 profile",
    ),
    Rule("as planned", _always, "projectors, banks and heads of the losses are dropped at export"),
)

QUESTIONS: dict[Question, tuple[Rule, ...]] = {
    "distil at all": DISTIL_AT_ALL,
    "mechanism": MECHANISM,
    "capacity gap": CAPACITY_GAP,
    "knowledge": KNOWLEDGE,
    "recipe": RECIPE,
    "deployment": DEPLOYMENT,
}
