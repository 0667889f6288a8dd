"""On an NVIDIA GPU: every precision trains, saves, resumes and samples; fast paths equal the plain ones."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from helpers import ROOT, assert_same_state, changed, config_file, launched, losses, newest, small

from charlm import CharLM
from charlm.config.fields import EvaluateConfig, ModelConfig, SampleConfig
from charlm.corpus.vocabulary import Vocab
from charlm.evaluation.by_context import by_context
from charlm.evaluation.dynamic import _Adapting, adapted_nats, evaluate_dynamic
from charlm.evaluation.evaluate import evaluate
from charlm.sampling.generate import generate, generate_ids
from charlm.training.lanes import Lanes, Position
from charlm.training.loop import train, train_step
from charlm.training.optimizer import make_optimizer
from charlm.training.run import State
from charlm.training.setup import make_accelerator, set_up
from charlm.training.step import Step, records_steps
from charlm.training.trained import load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]
OPTIONS = {
    "model": {"cell": "lstm", "embedding_size": 16, "hidden_size": 32, "num_layers": 2, "dropout": 0.1},
    "train": {"steps": 40, "batch_size": 8, "bptt": 24},
    "checkpoint": {"every": 20, "keep": 9},
}


@pytest.fixture(autouse=True)
def afresh():
    """accelerate keeps the precision of a process's first run, and refuses another; torch keeps tf32."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.backends.cudnn.rnn.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "ieee"


def run(tmp_path, name: str, **train_options):
    return changed(small(tmp_path / name, **OPTIONS), train=OPTIONS["train"] | train_options)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_model_learns_saves_resumes_and_samples(tmp_path, precision, cell):
    ngrams = 3 if cell == "gru" else 0
    config = changed(
        run(tmp_path, "run", precision=precision),
        model={"cell": cell, "ngrams": ngrams, "recall": 8 * ngrams},
    )
    summary = train(config, quiet=True)
    told = [loss for _, loss in losses(config.run_dir)]
    assert summary.status == "done" and sum(told[-5:]) < 0.9 * sum(told[:5])
    other = changed(config, train={"steps": 20})
    other.run_dir = str(tmp_path / "other")
    train(other, quiet=True)
    again = changed(other, train={"steps": 40})
    train(again, quiet=True)
    for (step, ours), (_, theirs) in zip(losses(again.run_dir), losses(config.run_dir), strict=True):
        assert ours == pytest.approx(theirs, rel=0.02), step
    model = CharLM.from_pretrained(tmp_path / "run" / "model", "cuda")
    assert len(generate(model, model.vocab, prompt="The ", length=20)) >= 20


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_in_bf16_the_recurrent_layers_compute_in_bf16(cell):
    """Under autocast cuDNN would take fp16, whatever was asked."""
    torch.manual_seed(0)
    model = CharLM(ModelConfig(cell=cell, embedding_size=16, hidden_size=32, num_layers=2), 50).cuda()
    ids = torch.randint(0, 50, (8, 12), device="cuda")
    seen, losses_ = [], []
    model.output_dropout.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    for dtype in (torch.float32, torch.bfloat16):
        model.compute_dtype = dtype
        model.zero_grad()
        loss, _ = model(ids, None, ids)
        loss.backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
        losses_.append(loss.item())
    assert seen == [torch.float32, torch.bfloat16]
    assert losses_[1] == pytest.approx(losses_[0], rel=1e-2) and losses_[1] != losses_[0]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cudnn_finds_its_weights_in_one_piece(recwarn, dtype, layers):
    model = CharLM(ModelConfig(embedding_size=16, hidden_size=32, num_layers=layers), 50).cuda()
    model.compute_dtype = dtype
    ids = torch.randint(0, 50, (8, 12), device="cuda")
    model(ids, None, ids)[0].backward()
    assert not [w for w in recwarn if "contiguous chunk" in str(w.message)]


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_in_one_call_are_those_one_by_one(monkeypatch, cell, dtype):
    config = ModelConfig(cell=cell, embedding_size=16, hidden_size=32, num_layers=3)
    ids, told = torch.randint(0, 50, (8, 12), device="cuda"), []
    for in_one_call in (True, False):
        torch.manual_seed(0)
        model = CharLM(config, 50)
        assert in_one_call == config.in_one_call
        model.compute_dtype = dtype
        model.cuda()
        loss, carry = model(ids, model(ids)[1], ids)
        loss.backward()
        monkeypatch.setattr(ModelConfig, "in_one_call", False)  # from here on
        told.append([loss, *carry, *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*told, strict=True):
        assert ours.dtype == theirs.dtype
        wide = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(ours, theirs, rtol=wide, atol=wide * theirs.abs().max().item())


@pytest.mark.parametrize("ngrams", [0, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recorded_step_trains_as_the_plain_one_does(tmp_path, precision, ngrams):
    plain = run(tmp_path, "plain", precision=precision, cuda_graph=False)
    plain = changed(
        plain,
        model={"dropout": 0.0, "norm": "layer", "residual": True, "ngrams": ngrams, "recall": 8 * ngrams},
    )
    recorded = changed(plain, train={"cuda_graph": None, "accumulate": 2})
    recorded.run_dir = str(tmp_path / "recorded")
    train(plain, quiet=True)
    train(recorded, quiet=True)
    for (step, ours), (_, theirs) in zip(losses(recorded.run_dir), losses(plain.run_dir), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4 if precision == "fp32" else 0.02), step


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_computes_in_the_precision_asked_for(tmp_path, precision):
    config, seen = run(tmp_path, "run", precision=precision, cuda_graph=False), set()
    setup = set_up(config, make_accelerator(config), print)
    setup.model.output_dropout.register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype))
    train_step(config, setup, State())
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float16}


def test_a_step_is_recorded_where_it_can_be(tmp_path):
    for precision, expected in (("bf16", True), ("fp32", True), ("fp16", False)):
        AcceleratorState._reset_state(reset_partial_state=True)
        config = run(tmp_path, precision, precision=precision)
        assert records_steps(config, make_accelerator(config)) is expected


def test_a_recorded_run_with_all_that_draws_random_numbers_goes_on_where_it_was(tmp_path):
    model = {"locked_dropout": True, "weight_drop": 0.1, "activation_reg": 1.0, "temporal_reg": 1.0}
    model |= {"ngrams": 4, "recall": 32}
    whole = changed(run(tmp_path, "whole"), model=model)
    train(whole, quiet=True)
    parted = changed(run(tmp_path, "parted", steps=20), model=model)
    train(parted, quiet=True)
    train(changed(parted, train={"steps": 40}), quiet=True)
    (_, ours), (_, theirs) = newest(parted.run_dir), newest(whole.run_dir)
    assert torch.equal(ours["random"]["cuda"], theirs["random"]["cuda"])
    for name, weight in ours["model"].items():
        torch.testing.assert_close(weight, theirs["model"][name], rtol=1e-3, atol=1e-4)


def test_a_recorded_step_outlives_the_recordings_of_many_samples(tmp_path):
    """Those are made and dropped on the way, and take turns in torch's 32 streams."""
    told = []
    for every in (0, 1):
        config = changed(run(tmp_path, str(every), precision="bf16"), sample={"every": every, "length": 12})
        train(config, quiet=True)
        told.append([loss for _, loss in losses(config.run_dir)])
    assert told[1] == pytest.approx(told[0], rel=0.02)


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("recall", [0, 32])
def test_between_lines_of_the_log_a_step_waits_for_nothing(tmp_path, cuda_graph, recall):
    config = changed(run(tmp_path, "run", precision="bf16", cuda_graph=cuda_graph), model={"recall": recall})
    setup, state = set_up(config, make_accelerator(config), print), State()
    try:
        for step in range(6):
            if step == 3:
                torch.cuda.set_sync_debug_mode("error")
            train_step(config, setup, state)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_is_recorded_while_windows_are_read_on_the_host(tmp_path, monkeypatch):
    told = []
    for name in ("there", "ahead"):
        config = run(tmp_path, name)
        train(config, quiet=True)
        told.append(losses(config.run_dir))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    for (step, ours), (_, theirs) in zip(*told, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4), step


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("recall", [0, 32])
def test_a_gpu_draws_what_a_cpu_does(cell, recall):
    vocab = Vocab("abcdefg\n", unknown="error")
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_size": 32, "num_layers": 2, "recall": recall}
    model = CharLM(ModelConfig(cell=cell, **sizes), len(vocab))
    config = SampleConfig(prompt="abc", length=200, temperature=0.9)
    on_cpu = list(generate_ids(model, vocab, config, 3))
    on_gpu = list(generate_ids(model.cuda(), vocab, config, 3))
    assert on_gpu == on_cpu
    assert len({tuple(ids) for ids in on_cpu}) > 50


def test_ids_that_stay_on_the_host_give_the_same_windows(monkeypatch):
    import numpy as np

    ids = np.arange(60_000, dtype=np.uint16)
    there = Lanes(ids, 4, 7, device="cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    ahead = Lanes(ids, 4, 7, device="cuda")
    assert there.ids.is_cuda and not ahead.ids.is_cuda
    position = Position()
    for _ in range(20):
        for ours, theirs in zip(ahead.window(position), there.window(position), strict=True):
            assert ours.is_cuda and torch.equal(ours, theirs)
        position = there.after(position)


@pytest.mark.parametrize("ngrams", [0, 4])
def test_a_gpu_and_a_cpu_train_alike_in_fp32(tmp_path, monkeypatch, ngrams):
    """With n-grams, whose counts are looked up there and here."""
    on_gpu = changed(run(tmp_path, "gpu"), model={"dropout": 0.0, "ngrams": ngrams, "recall": 8 * ngrams})
    train(on_gpu, quiet=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    on_cpu = changed(run(tmp_path, "cpu"), model={"dropout": 0.0, "ngrams": ngrams, "recall": 8 * ngrams})
    train(on_cpu, quiet=True)
    for (step, ours), (_, theirs) in zip(losses(on_gpu.run_dir), losses(on_cpu.run_dir), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3), step


@pytest.mark.parametrize("recall", [0, 32])
def test_two_runs_are_equal_to_the_bit_in_fp32(tmp_path, recall):
    """As far as cuDNN's kernels are deterministic, which its recurrent ones are."""
    for name in "ab":
        train(changed(run(tmp_path, name), model={"dropout": 0.0, "recall": recall}), quiet=True)
    assert_same_state(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("gradients", ["fp32", "bf16"])
def test_a_run_under_torchs_launcher_saves_and_goes_on_over_nccl(tmp_path, gradients):
    """With one GPU, where nothing is averaged; what checkpoints gather goes through NCCL all the same."""
    whole = run(tmp_path, "whole", cuda_graph=False)
    train(whole, quiet=True)
    for steps in (20, 40):
        config = run(tmp_path, "launched", gradients=gradients, steps=steps)
        words = ["torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
        launched(words, ROOT / "scripts" / "train.py", "--config", config_file(config))
    told = [loss for _, loss in losses(config.run_dir)]
    assert told == pytest.approx([loss for _, loss in losses(whole.run_dir)], rel=0.02)


@pytest.mark.parametrize("gradients", ["fp32", "bf16"])
def test_gradients_are_sent_in_the_dtype_asked_for(tmp_path, gradients):
    """Over NCCL with one process, which averages with itself: a recorded step, again and again."""
    import torch.distributed as dist

    config = run(tmp_path, "sent", gradients=gradients)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        accelerator = SimpleNamespace(num_processes=1, scaler=None, device=torch.device("cuda"))
        model = CharLM(ModelConfig(embedding_size=16, hidden_size=32, num_layers=2), 50).cuda()
        step = Step(config, accelerator, model, make_optimizer(model, config.optim))
        x = torch.randint(0, 50, (config.train.batch_size, 12), device="cuda")
        model(x, None, x)[0].backward()
        plain = {n: p.grad.clone() for n, p in model.named_parameters()}
        for _ in range(3):
            _, norm, _ = step(x, x, None)
            scale = min(1.0, config.optim.clip / (norm.item() + 1e-6))
            for name, p in model.named_parameters():
                near = {"rtol": 1e-2, "atol": 1e-4} if gradients == "bf16" else {"rtol": 1e-4, "atol": 1e-6}
                torch.testing.assert_close(p.grad, plain[name] * scale, **near)
        assert step.recorded
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("dropout, recall", [(0.0, 0), (0.5, 0), (0.0, 32)])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_dynamic_evaluation_and_by_context_are_those_of_the_cpu(cell, dropout, recall):
    """cuDNN has a backward in training mode only."""
    vocab = Vocab("abcdefg", unknown="error")
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_size": 16, "num_layers": 2, "recall": recall}
    config = ModelConfig(cell=cell, dropout=dropout, **sizes)
    model, ids = CharLM(config, len(vocab)), vocab.encode("abcdefgfeadbc" * 40)
    told, rows = [], []
    for device in ("cpu", "cuda"):
        model.to(device)
        told.append(evaluate_dynamic(model, vocab, ids, EvaluateConfig(), 1e-2, 1e-3))
        rows.append([r["nats_per_character"] for r in by_context(model, vocab, ids, EvaluateConfig())])
    cpu, gpu = told
    assert gpu["nats_per_character"] == pytest.approx(cpu["nats_per_character"], rel=1e-3)
    assert gpu["dynamic"]["bpc"] == pytest.approx(cpu["dynamic"]["bpc"], rel=2e-2)
    assert gpu["dynamic"]["bpc"] < gpu["bpc"]
    assert rows[1] == pytest.approx(rows[0], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("lanes", [1, 5])
def test_recorded_steps_of_dynamic_evaluation_are_the_plain_ones(monkeypatch, lanes, cell, dtype):
    """With a last window that is shorter, and a last lane that is."""
    vocab = Vocab("abcdefg", unknown="error")
    torch.manual_seed(0)
    model = CharLM(ModelConfig(cell=cell, embedding_size=8, hidden_size=16, num_layers=2), 7).cuda()
    model.compute_dtype = dtype
    ids = vocab.encode("abcdefgfeadbc" * 40)
    options = (model, ids, 1e-3, 1e-2, lanes, 16, 11)
    recorded = [nats.cpu() for nats in adapted_nats(*options)]
    monkeypatch.setattr(
        _Adapting,
        "__call__",
        lambda self, x, carry, y, reduction: self._step(x, y, *(carry or self.model.zeros(len(x)))),
    )
    plain = [nats.cpu() for nats in adapted_nats(*options)]
    assert len(recorded) == len(plain) and recorded[-1].shape != recorded[0].shape
    wide = 1e-3 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(recorded, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=wide, atol=wide)


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_trained_model_is_evaluated_and_sampled_in_every_precision(tmp_path, cell, norm):
    config = changed(run(tmp_path, "run"), model={"cell": cell, "norm": norm, "recall": 32})
    train(config, quiet=True)
    figures = {}
    for precision in ("fp32", "tf32", "bf16"):
        model, vocab, opened = load(config.run_dir, "cuda", precision)
        assert opened.evaluate.precision == precision
        assert model.compute_dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
        ids = vocab.encode("The quick brown fox. " * 50)
        figures[precision] = evaluate(model, vocab, ids, EvaluateConfig())["bpc"]
        texts = [generate(model, vocab, prompt="The ", length=length) for length in (5, 60)]
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert len(texts[0]) >= 5 and len(texts[1]) >= 60
    assert figures["bf16"] == pytest.approx(figures["fp32"], abs=0.01) and figures["bf16"] != figures["fp32"]
    assert figures["tf32"] == pytest.approx(figures["fp32"], abs=0.01)
