"""The drawing of the hello RNN: a valid SVG with the numbers of the model."""

import xml.etree.ElementTree as ET

import pytest
import torch
from helpers import small

from charlm.commands.cli import main
from charlm.config.parse import load_config
from charlm.corpus.vocabulary import Vocab
from charlm.hello.hello import compute_panel, draw
from charlm.model.char_lm import CharLM
from charlm.training.loop import train

SVG = "{http://www.w3.org/2000/svg}"
X, Y = torch.tensor([[0, 1, 2, 2]]), torch.tensor([[1, 2, 2, 3]])  # hell → ello


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The SVG of `charlm hello --figure`."""
    path = tmp_path_factory.mktemp("figure") / "hello.svg"
    main(["hello", "--figure", str(path)])
    return ET.parse(path).getroot()


def numbers(group: ET.Element, kind: str) -> list[float]:
    """The numbers of a kind, from the left column to the right, each from the top."""
    texts = [t for t in group.iter(f"{SVG}text") if kind in t.get("class").split()]
    return [float(t.text.replace("−", "-").removeprefix("p = ")) for t in texts]


def near(tensor: torch.Tensor):
    return pytest.approx(tensor.flatten().tolist(), abs=0.00501)


def test_its_numbers_are_the_models_before_and_after(drawn, tmp_path):
    """Computed from the weights at the start and at the end of a second, identical training."""
    config = load_config("hello", f"run_dir={tmp_path / 'run'}", f"data.dir={tmp_path / 'data'}")
    weights = []

    def watch(step, model, loss):
        if step == 0:
            weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    train(config, quiet=True, watch=watch)
    weights.append(CharLM.from_pretrained(tmp_path / "run" / "model").state_dict())
    groups = drawn.findall(f"{SVG}g")
    assert len(groups) == 2
    for group, w in zip(groups, weights, strict=True):
        hidden, logits = torch.zeros(3), []
        states = []
        for i in X[0]:  # the recurrence
            preactivation = (
                w["layers.0.weight_ih_l0"][:, i] + w["layers.0.bias_ih_l0"] + w["layers.0.bias_hh_l0"]
            )
            hidden = torch.tanh(preactivation + w["layers.0.weight_hh_l0"] @ hidden)
            states.append(hidden)
            logits.append(w["output.weight"] @ hidden + w["output.bias"])
        hidden, logits = torch.stack(states), torch.stack(logits)
        one_hot = torch.nn.functional.one_hot(X[0], 4)
        order = [*one_hot.flatten().tolist(), *hidden.flatten().tolist()]
        plain = numbers(group, "plain")
        assert [plain[7 * t + i] for t in range(4) for i in range(4)] == order[:16]
        assert [plain[7 * t + 4 + i] for t in range(4) for i in range(3)] == near(hidden)
        at_target = [t for t in group.iter(f"{SVG}text") if t.get("class") == "number right"]
        assert [float(t.text.replace("−", "-")) for t in at_target] == near(logits.gather(1, Y[0][:, None]))
        others = logits[torch.nn.functional.one_hot(Y[0], 4) == 0]
        wrong = [t for t in group.iter(f"{SVG}text") if t.get("class") == "number wrong"]
        assert [float(t.text.replace("−", "-")) for t in wrong] == near(others)
        assert numbers(group, "start") == [0, 0, 0]
        predicted = [t.text for t in group.iter(f"{SVG}text") if "predicted" in t.get("class")]
        assert predicted == ["helo"[i] for i in logits.argmax(1)]
        assert numbers(group, "chance") == near(logits.softmax(-1).gather(1, Y[0][:, None]))


def test_it_has_the_labels_of_the_lecture(drawn):
    labels = ["".join(t.itertext()) for t in drawn.iter(f"{SVG}text")]
    assert "before training" in labels and "after 10 steps" in labels
    for name, count in (("Wxh", 8), ("Whh", 8), ("Why", 8), ("h0", 2), ("p: probability of the target", 2)):
        assert labels.count(name) == count
    for group in drawn.findall(f"{SVG}g"):
        characters = [t for t in group.iter(f"{SVG}text") if "character" in t.get("class").split()]
        assert [t.text for t in characters if "right" in t.get("class")] == list("ello")
        assert [t.text for t in characters if "right" not in t.get("class")] == list("hell")
        frames = [r for r in group.iter(f"{SVG}rect") if r.get("class") == "target"]
        assert len(frames) == 4
    for layer in ("input layer", "hidden layer", "output layer"):
        assert labels.count(layer) == 2


def test_it_is_self_contained_and_has_a_dark_theme(drawn):
    text = ET.tostring(drawn, encoding="unicode")
    assert "prefers-color-scheme: dark" in text and "href" not in text and "@import" not in text
    assert "url(http" not in text and "<script" not in text


def test_every_box_is_inside_the_picture(drawn):
    _, _, width, height = map(float, drawn.get("viewBox").split())
    for i, group in enumerate(drawn.findall(f"{SVG}g")):
        for box in group.iter(f"{SVG}rect"):
            assert float(box.get("x")) + float(box.get("width")) < width
            assert 490 * i + float(box.get("y")) + float(box.get("height")) < height


def test_markup_characters_are_escaped():
    vocab = Vocab(list("<&>"))
    model = CharLM(small("x", model={"cell": "rnn", "embedding_size": 0, "hidden_size": 2}).model, len(vocab))
    panel = compute_panel("a < b", model, torch.tensor([[0, 1]]), torch.tensor([[1, 2]]))
    root = ET.fromstring(draw([panel], ["<", "&"], ["&", ">"], vocab))
    assert "a < b" in ["".join(t.itertext()) for t in root.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("name", "message"), [("hello.png", "name it .svg"), ("no/such/a.svg", "cannot be written")]
)
def test_a_figure_that_cannot_be_written_is_an_error(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["hello", "--figure", name])
    assert left.value.code.startswith(f"charlm: error: --figure {name}: ") and message in left.value.code
    assert list(tmp_path.iterdir()) == []
