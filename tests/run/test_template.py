from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from optuna_stitch.evaluation.metrics import resolve_metrics
from optuna_stitch.models.parent import load_parent
from optuna_stitch.models.zoo import zoo_outputs
from optuna_stitch.run.schema import StudyFile
from optuna_stitch.run.study_file import load_study_file
from optuna_stitch.run.template import study_file_for
from optuna_stitch.search.objective import resolve_constraints
from optuna_stitch.search.samplers.by_name import make_sampler
from optuna_stitch.utils.errors import DataError
from tests.helpers.commands import call

# A setting, perhaps after a mark; one with "or" is in place of the setting above.
SETTING = re.compile(r"( *)(# )?(or )?([a-z_]+):( .*)?")
IN21K = "vit_small_patch16_224.augreg_in21k"
# What the comments of every written file show, beside what depends on the networks.
CHANGED = {
    "artifacts",
    "constraints",
    "evaluation",
    "fit",
    "grace",
    "keep",
    "objectives",
    "sampler",
    "space",
    "start",
    "steering",
    "stitching",
    "storage",
    "tune",
}
PAIRS = [
    ("resnet50.a1_in1k", "vit_small_patch16_224.augreg_in1k"),
    ("resnet50.a1_in1k", IN21K),
    ("vit_small_patch16_224.dino", "test_vit4"),
    (IN21K, "vit_base_patch16_224.augreg_in21k"),
    ("torchvision/resnet18", "test_vit4"),
    ("torchvision/fcn_resnet50", "torchvision/deeplabv3_resnet50"),
]


@pytest.fixture(autouse=True)
def _empty(workplace: Path) -> None:
    Path("tiny.yaml").unlink()


def _load(text: str, path: str = "study.yaml") -> StudyFile:
    Path(path).write_text(text)
    return load_study_file(path)


def _check(study_file: StudyFile) -> None:
    """What `Run.start` checks beside the keys; packages of OptunaHub would have to be fetched."""
    study = study_file.study
    resolve_metrics(study.objectives)
    resolve_constraints(study.constraints)
    if not study.sampler.name.startswith("hub:"):
        make_sampler(study.sampler.name, study.sampler.arguments, seed=0)


def _examples(text: str) -> dict[str, str]:
    """By each setting in a comment, the file as it is with that setting."""
    lines = text.splitlines()
    found = [SETTING.fullmatch(line) for line in lines]
    examples: dict[str, str] = {}
    for place, match in enumerate(found):
        if match is None or match[2] is None:
            continue
        changed = list(lines)
        changed[place] = f"{match[1]}{match[4]}:{match[5]}"
        if match[3] is not None:
            above = next(
                at
                for at in reversed(range(place))
                if (other := found[at]) is not None and not other[3] and other[1] == match[1]
            )
            changed[above] = ""
        examples[f"{place}: {changed[place].strip()}"] = "\n".join(changed)
    return examples


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_every_setting_in_a_comment_is_valid(a: str, b: str) -> None:
    text = study_file_for(a, b)
    assert max(map(len, text.splitlines())) < 100
    plain = _load(text)
    _check(plain)
    examples = _examples(text)
    for example in examples.values():
        changed = _load(example)
        _check(changed)
        assert changed != plain  # or it would be no setting
    assert {re.split(r"[ :]+", name)[1] for name in examples} >= CHANGED
    # all of one kind together
    together = re.sub(r"(?m)^( *)# (?!or )([a-z_]+: )", r"\1\2", text)
    assert _load(together).study.constraints
    _check(_load(together))


def test_networks_with_weights_for_the_same_classes() -> None:
    written = _load(study_file_for("resnet50.a1_in1k", "torchvision/resnet18"))
    assert written.parents.a.network == "resnet50.a1_in1k"
    assert written.parents.b.network == "torchvision/resnet18"
    assert written.parents.a.pretrained
    assert written.parents.b.pretrained
    assert written.data.val.root == Path("imagenetv2-matched-frequency-format-val").resolve()
    assert written.study.objectives == ["accuracy", "macs"]


def test_weights_for_other_classes_are_told_at_the_place() -> None:
    text = study_file_for("resnet50.a1_in1k", IN21K)
    written = _load(text)
    assert written.parents.a.pretrained
    assert not written.parents.b.pretrained
    assert written.parents.b.checkpoint is not None
    assert written.parents.b.model_args == {"num_classes": 1000}
    of_b = text.partition("  b:")[2].partition("data:")[0]
    assert "give 21843 classes, those of the other parent 1000." in of_b
    assert "must tell the same classes apart" in of_b
    # weights that would do are named, and exist
    others = re.findall(r"# or network: (\S+)", of_b)
    assert others
    for name in others:
        assert timm.models.is_model_pretrained(name)
        assert zoo_outputs(name) == 1000
    assert "must tell the same" not in text.partition("  b:")[0]


def test_networks_without_a_classifier_or_weights_are_for_ones_own_images() -> None:
    text = study_file_for("vit_small_patch16_224.dino", "test_vit4")
    written = _load(text)
    for parent in (written.parents.a, written.parents.b):
        assert parent.checkpoint is not None
        assert parent.model_args == {"num_classes": 10}
    assert "give no classes" in text
    assert "timm has no weights of this name." in text
    assert text.count("# or train: {epochs: 10}") == 2
    assert written.data.root == Path("images").resolve()


def test_networks_that_label_pixels() -> None:
    written = _load(study_file_for(*PAIRS[-1]))
    assert written.study.objectives == ["mean_iou", "macs"]
    assert written.data.dataset == "torch/voc2012"


def test_what_the_zoos_say_of_outputs_is_so() -> None:
    for name in ("test_resnet", "torchvision/squeezenet1_1"):
        assert zoo_outputs(name) == load_parent(name).graph().classes
    assert zoo_outputs("vit_small_patch16_224.dino") == 0
    assert zoo_outputs("test_vit4") is None
    assert zoo_outputs("torchvision/raft_small") is None


def _write_images(folder: Path, classes: int, each: int) -> None:
    for name in range(classes):
        (folder / f"class{name}").mkdir(parents=True)
        for number in range(each):
            Image.new("RGB", (8, 8)).save(folder / f"class{name}" / f"{number}.png")


def test_init_with_a_folder_of_images(capsys: pytest.CaptureFixture[str]) -> None:
    _write_images(Path("my images"), 3, 4)
    Path("studies").mkdir()
    options = ["--data", "my images", "--to", "studies/mine.yaml"]
    assert call("init", "test_resnet", "test_vit4", *options) == 0
    assert "optuna-stitch run studies/mine.yaml --smoke" in capsys.readouterr().out
    written = load_study_file("studies/mine.yaml")
    assert written.data.root is not None
    assert written.data.root.resolve() == Path("my images").resolve()
    assert written.data.train.images == written.data.val.images == 4
    assert written.parents.a.model_args == {"num_classes": 3}
    assert "give 1000 classes, the images have 3." in Path("studies/mine.yaml").read_text()
    with pytest.raises(DataError, match="no such path"):
        study_file_for("test_resnet", "test_vit4", data=Path("nowhere"))


def test_an_exported_program(capsys: pytest.CaptureFixture[str]) -> None:
    module = timm.create_model("test_resnet", num_classes=10).eval()
    Path("a:b").mkdir()  # a name that YAML wants in quotes
    path = Path("a:b") / "#mine.pt2"
    torch.export.save(torch.export.export(module, (torch.zeros(1, 3, 32, 32),)), path)
    assert call("init", str(path), "test_vit4", "--to", "mine.yaml") == 0
    assert load_study_file("mine.yaml").parents.a.network == str(path.resolve())
    capsys.readouterr()
    assert call("init", "nowhere.pt2", "test_vit4") == 2
    assert "no exported program at nowhere.pt2" in capsys.readouterr().err


def test_a_file_that_is_there_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("torchvision-resnet18--test_resnet.yaml")
    path.write_text("precious")
    assert call("init", "torchvision/resnet18", "test_resnet") == 2
    captured = capsys.readouterr()
    assert "is there already" in captured.err
    assert captured.out == ""
    assert path.read_text() == "precious"
    assert call("init", "torchvision/resnet18", "test_resnet", "--force") == 0
    assert load_study_file(path).parents.b.network == "test_resnet"


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("resnet50", "resnot50", "timm knows no network named 'resnot50'. Did you mean resnet50"),
        ("torchvision/resnot18", "resnet50", "Did you mean torchvision/resnet18"),
        (
            "resnet50.nothing",
            "resnet18",
            "no weights named 'resnet50.nothing'. There are resnet50",
        ),
        ("torchvision/fcn_resnet50", "resnet18", "labels pixels and resnet18 whole images"),
    ],
)
def test_networks_that_are_none(
    a: str, b: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("init", a, b) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_what_is_written_runs(smoke_once: Path) -> None:
    """Of `init` and `run --smoke`, in a folder that nothing else was in."""
    name = "test_resnet--test_efficientnet"
    assert (smoke_once / f"{name}.yaml").is_file()
    assert (smoke_once / "runs" / f"{name}-smoke" / "report.md").is_file()


def test_init_says_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("init", "test_resnet", "test_efficientnet") == 0
    out = capsys.readouterr().out
    assert "optuna-stitch inspect test_resnet test_efficientnet " in out
    assert "optuna-stitch run test_resnet--test_efficientnet.yaml --smoke" in out
