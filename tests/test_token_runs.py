"""Runs of methods over tokens: what one has trained the next starts from, by its path."""

import functools
import json
import re
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_resume import assert_they_end_alike, whole_and_stopped

import pgjax
from pgjax.alignment import REWARDS, TOKENIZERS, language_model
from pgjax.alignment.learned_rewards import EnsembleOptions, of_members
from pgjax.alignment.models import LANGUAGE_MODELS, Prompt
from pgjax.commands import cli, flags
from pgjax.running.config import to_config
from pgjax.running.directory import read_rows
from pgjax.running.shell import save_run


@pytest.fixture(scope="module")
def chain(tiny_token_algorithm, tmp_path_factory, init):
    """A run of each method in one folder, each from the one before, and the states in them. A language model and
    reward models have trained; the others stand where they start, but for their parameters."""
    at = tmp_path_factory.mktemp("chain")
    make = functools.partial(tiny_token_algorithm, total_steps=16)
    runs = {}

    def trained(name, algorithm, seeds):
        pgjax.run(algorithm, 3, at / name, seeds=seeds, checkpoint_every=1, episodes=4, progress=False)
        runs[name] = {which: pgjax.load(at / name, which) for which in ("newest", "best")}

    def started(name, algorithm):
        state = init(algorithm, jax.random.key(3))
        state = state._replace(params=jax.tree.map(lambda x: 1.5 * x, state.params))
        save_run(algorithm, 3, state, [{"iteration": 1, "steps": 8}], {algorithm.score[0]: 0.5}, at / name)
        runs[name] = dict.fromkeys(("newest", "best"), pgjax.load(at / name))

    trained("lm", make("lm", learning_rate=10.0, lr_schedule="constant"), 2)
    started("sft", make("sft", model=language_model(at / "lm", member=1)))
    trained("rm-3", make("reward-model", model=language_model(at / "sft")), 3)
    one = runs["rm-3"]["newest"].member(2)
    save_run(one.algorithm, 5, one.state, read_rows(at / "rm-3" / "metrics.jsonl"), {"log_loss": 0.5}, at / "rm")
    reward = REWARDS.make(str(at / "rm-3"), reduce="min")
    started("rlhf", make("rlhf", model=language_model(at / "sft"), reward=reward))
    return SimpleNamespace(at=at, runs=runs)


@pytest.fixture
def alone(chain, tmp_path):
    """(name) -> a run without those that it comes from."""

    def moved(name):
        return (chain.at / name).rename(tmp_path / name)

    yield moved
    for run in tmp_path.iterdir():
        run.rename(chain.at / run.name)


@pytest.mark.parametrize(("name", "policy"), [("lm", None), ("sft", None), ("rlhf", "policy")])
def test_a_language_model_is_what_a_run_has_trained_last_or_best(name, policy, chain, alone):
    run = alone(name)
    for which, result in chain.runs[name].items():
        for member in (0, 1) if name == "lm" else (0,):
            state = result.member(member).state if name == "lm" else result.state
            model = language_model(run, checkpoint=which, member=member)
            params = state.params[policy] if policy else state.params
            chex.assert_trees_all_equal(model.params, params)
            assert jax.tree.structure(model.params) == jax.tree.structure(params)
            source = result.algorithm if name == "lm" else result.algorithm.model
            assert (model.network, model.tokenizer) == (source.network, source.tokenizer)


def test_the_best_is_not_the_newest_and_members_differ(chain):
    """Or the test above would see nothing."""
    every = [{"checkpoint": which, "member": i} for which in ("newest", "best") for i in (0, 1)]
    assert len({language_model(chain.at / "lm", **options).sha256 for options in every}) == 4


def test_half_precision_is_a_way_to_read(chain):
    model = language_model(chain.at / "lm", dtype="bfloat16", param_dtype="bfloat16", remat=True)
    assert (model.network.dtype, model.network.param_dtype, model.network.remat) == ("bfloat16", "bfloat16", True)
    assert {x.dtype for x in jax.tree.leaves(model.params)} == {jax.numpy.bfloat16.dtype}


@pytest.mark.parametrize(("name", "members"), [("rm", 1), ("rm-3", 3)])
def test_a_reward_is_what_runs_of_reward_models_have_trained(name, members, chain, alone):
    found = REWARDS.make(str(alone(name)), reduce="min", variance_coef=0.5)
    result = chain.runs["rm-3"]["newest"]
    params, reference = jax.tree.map(lambda x: x[-members:], (result.state.params, result.state.reference))
    model = result.algorithm.model
    expected = of_members(model.network, model.tokenizer, params, reference, EnsembleOptions("min", 0.5))
    chex.assert_trees_all_equal(jax.tree.leaves(found), jax.tree.leaves(expected))
    assert found.mean.shape == (members,)
    assert (found.network, found.tokenizer, found.options.reduce) == (model.network, model.tokenizer, "min")


def described_and_made(kind, part):
    described = json.loads(json.dumps(kind.describe(part)))
    return described, kind.make(described["name"], **described["options"])


def test_parts_are_made_again_from_their_descriptions(chain):
    models = [language_model(chain.at / name) for name in ("lm", "sft", "rlhf")]
    models.append(language_model(chain.at / "lm", checkpoint="best", member=1, param_dtype="bfloat16"))
    rewards = [REWARDS.make(str(chain.at / name), **o) for name, o in (("rm", {}), ("rm-3", {"variance_coef": 0.1}))]
    rewards.append(REWARDS.make("sentiment"))
    for kind, parts in ((LANGUAGE_MODELS, models), (REWARDS, rewards)):
        for part in parts:
            described, again = described_and_made(kind, part)
            assert kind.describe(again) == kind.describe(part)
            assert len(json.dumps(described)) < 2000, "no parameters in it"
            assert jax.tree.structure(again) == jax.tree.structure(part)
            chex.assert_trees_all_equal(jax.tree.leaves(again), jax.tree.leaves(part))
    assert kind.describe(kind.with_options(rewards[1], reduce="min"))["options"]["reduce"] == "min"
    assert LANGUAGE_MODELS.with_options(models[0], member=1).sha256 == language_model(chain.at / "lm", member=1).sha256


def test_a_model_made_in_code_has_no_description_and_no_options(tiny_language_model, chain):
    assert LANGUAGE_MODELS.describe(tiny_language_model) is None
    assert LANGUAGE_MODELS.options(tiny_language_model) == {}
    trained = chain.runs["sft"]["newest"]
    assert LANGUAGE_MODELS.describe(trained.algorithm.language_model(trained.state)) is None


def test_what_is_not_the_one_it_was_is_refused(chain):
    """When a run has been trained on, what started from it would not be what it says it is."""
    for kind, name, label in ((LANGUAGE_MODELS, "lm", "model"), (REWARDS, "rm-3", "reward")):
        with pytest.raises(pgjax.InputError, match=rf"{label} = .* is not the one it was: its digest is .*, not 00"):
            kind.make(str(chain.at / name), sha256="00")
    config = chain.at / "sft" / "config.json"
    kept = config.read_text()
    config.write_text(kept.replace(language_model(chain.at / "lm", member=1).sha256, "00"))
    with pytest.raises(pgjax.InputError, match="is not the one it was"):
        pgjax.load(chain.at / "sft")
    config.write_text(kept)


@pytest.fixture(scope="module")
def others(chain, tiny):
    """What is no run of a language model."""
    for name in ("ppo", "swept", "own", "empty"):
        (chain.at / name).mkdir()
    config = json.loads((chain.at / "lm" / "config.json").read_text())
    (chain.at / "ppo" / "config.json").write_text(json.dumps(to_config(tiny) | {"seeds": None}))
    (chain.at / "swept" / "sweep.json").write_text("{}")
    config["parts"]["tokenizer"] = {"name": "Words", "own": "Words(words=('a',))"}
    (chain.at / "own" / "config.json").write_text(json.dumps(config))
    return chain.at


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nowhere", {}, "holds neither a run nor a Hugging Face model: it has no config.json"),
        ("empty", {}, "holds neither a run nor a Hugging Face model"),
        ("swept", {}, "holds a sweep: save one of its members as a run"),
        ("ppo", {}, "is not accepted: the run there trains no language model that we know"),
        ("own", {}, "is not accepted: the run there trains no language model that we know"),
        ("rm", {}, "is not accepted: reward-model trains no language model"),
        ("lm", {"member": 2}, "member = 2 is not accepted: expected one from 0 to 1"),
        ("sft", {"member": 1}, "member = 1 is not accepted: expected one from 0 to 0"),
        ("lm", {"checkpoint": "bets"}, "ModelOptions.checkpoint = 'bets' is not accepted: expected one of"),
        ("lm", {"chekpoint": "best"}, "model .*lm has no option 'chekpoint': did you mean checkpoint"),
    ],
)
def test_what_is_no_language_model_is_refused(name, options, message, others):
    with pytest.raises(pgjax.InputError, match=message):
        language_model(others / name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nowhere", {}, "is not known: .*sentiment.*nowhere holds neither a run nor"),
        ("lm", {}, "is not accepted: expected the run of a reward model"),
        ("ppo", {}, "is not accepted: expected the run of a reward model"),
        ("rm", {"reduce": "max"}, "EnsembleOptions.reduce = 'max' is not accepted: expected one of 'mean', 'min'"),
        ("rm", {"variance": 1.0}, "reward .*rm has no option 'variance': did you mean variance_coef"),
    ],
)
def test_what_is_no_reward_is_refused(name, options, message, others):
    with pytest.raises(pgjax.InputError, match=message):
        REWARDS.make(str(others / name), **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["generate", "lm", "--prompt", "a dog " * 10],
            "--prompt has 20 tokens: expected fewer than the context of the",
        ),
        (["generate", "lm", "--prompt", "a zebra"], "the word 'zebra' is not in the vocabulary"),
        (["generate", "lm", "--member", "2"], "member = 2 is not accepted: expected one from 0 to 1"),
        (["generate", "rm"], "reward-model trains no language model"),
        (["render", "sft"], "SFT has no policy in an environment"),
        (
            ["train", "rlhf", "--model", "sft"],
            "needs --reward: a run of a reward model or judge or a file of right answers (*.jsonl) by its path, or one",
        ),
        (["train", "rlhf", "--model", "sft", "--reward", "rm", "--beta", "-1"], "RLHF.beta = -1.0 is not accepted"),
    ],
)
def test_bad_command_lines_are_one_message_and_status_2(arguments, message, chain, monkeypatch, capsys):
    monkeypatch.chdir(chain.at)
    assert cli.main([*arguments, "--no-cache"]) == 2
    assert message in capsys.readouterr().err


def test_a_run_is_kept_under_the_name_of_the_model_and_not_its_path(chain):
    what, _ = flags.subject("train", ["sft", "--model", str(chain.at / "lm")])
    assert what.subject == "lm"


def test_names_of_rewards_are_suggested():
    with pytest.raises(pgjax.InputError, match="reward = 'sentimen' is not known: did you mean sentiment"):
        REWARDS.make("sentimen")
    with pytest.raises(pgjax.InputError, match="reward sentiment has no option 'reduce': expected none"):
        REWARDS.make("sentiment", reduce="min")


@pytest.mark.slow
def test_methods_continue_to_the_same_bits_in_a_new_process(chain, tiny_token_algorithm, tmp_path):
    """Of each kind of state and of step, alone or as a population."""
    model, reward = language_model(chain.at / "sft"), REWARDS.make(str(chain.at / "rm-3"), variance_coef=0.1)
    algorithms = {
        "lm": tiny_token_algorithm("lm"),
        "reward-model": tiny_token_algorithm("reward-model", model=model),
        "rlhf": tiny_token_algorithm("rlhf", model=model, reward=reward, kl_target=1.0),
        "online-dpo": tiny_token_algorithm("online-dpo", model=model, reward=reward),
        "kto": tiny_token_algorithm("kto", model=model),
    }
    kept = {"checkpoint_every": 2, "episodes": 4}
    cases = {name: (algorithms.pop(name), kept | {"seeds": 2}) for name in ("lm", "rlhf")}
    cases |= {name: (algorithm, kept) for name, algorithm in algorithms.items()}
    assert_they_end_alike(whole_and_stopped(tmp_path, cases), cases)


TINY = ["--batch-size", "8", "--episodes", "4", "--no-cache"]
NETWORK = ["--width", "8", "--layers", "1", "--num-heads", "2", "--num-groups", "1", "--mlp-width", "8"]
RLHF = ["--num-epochs", "1", "--num-minibatches", "2", "--max-tokens", "5", "--total-steps", "16"]


@pytest.fixture
def pg(capsys, tmp_path, monkeypatch):
    """A command line of tiny runs in an empty folder -> what it prints; it must succeed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return call


def figures(out):
    return dict(re.findall(r"(\w+)=(\S+)", out.splitlines()[-1]))


@pytest.mark.slow
def test_methods_beside_rlhf_on_the_command_line(pg, tmp_path):
    """On sums: trained, evaluated, plotted, swept and spoken to."""
    sums = ["--data", "addition", "--examples", "64", *TINY]
    tokens = ["--tokenizer", "addition", "--length", "8", "--context", "32", "--total-steps", "512"]
    pg("train", "lm", *tokens, "--directory", "lm", *NETWORK, *sums)
    sampling = ["--reward", "addition", "--max-tokens", "3", "--num-minibatches", "2", "--passes", "4"]
    for name in ("kto", "rloo", "online-dpo"):
        samples = name != "kto"
        start = ["--model", "lm", "--total-steps", "32", *sums, *(sampling if samples else [])]
        out = pg("train", name, *start, "--directory", name)
        assert figures(out)["model"] == "lm"
        scores = pg("evaluate", name, "--episodes", "4", "--no-cache")
        assert ("pass@4" in scores) == samples
        assert ("rewards/margins" in scores) != samples
        assert pg("generate", name, "--prompt", "1 + 2 =", "--no-cache").startswith("1 + 2 =")
        assert pg("plot", name, "--out", "curves").split() == ["curves.png", "curves.svg", "curves.pdf"]
        assert figures(pg("resume", name, "--total-steps", "48", "--no-cache"))["steps"] == "48"
        out = pg("sweep", name, *start, "--beta", "0.1,1", "--directory", f"{name}s")
        assert (figures(out)["settings"], figures(out)["failed"]) == ("2", "0")


@pytest.mark.slow
def test_a_model_of_steps_becomes_a_reward_on_the_command_line(pg, tmp_path):
    sums = ["--data", "sums", "--examples", "64", *TINY]
    tokens = ["--tokenizer", "sums", "--length", "8", "--context", "32", "--total-steps", "512"]
    pg("train", "lm", *tokens, "--directory", "lm", *NETWORK, *sums)
    pg("train", "process-reward-model", "--model", "lm", "--total-steps", "32", "--directory", "steps", *sums)
    out = pg(
        "train", "process-reward-model", "--model", "lm", "--outcome-only", "--seeds", "2", "--directory", "ends", *sums
    )
    assert figures(out)["model"] == "lm"
    assert "accuracy" in pg("evaluate", "steps", "--episodes", "4", "--no-cache")
    prompt, tokens = Prompt(jnp.array([[1, 10, 2, 11]]), jnp.ones((1, 4), bool)), jnp.array([[3, 12, 3, 13]])
    for name, options, paid in [
        ("steps", {}, [0, 1, 0, 1]),
        ("steps", {"pay": "sum"}, [0, 1, 0, 1]),
        ("ends", {}, [0, 0, 0, 1]),
    ]:
        found = REWARDS.make(name, **options)(prompt, tokens, tokens >= 0)[0]
        assert (np.sign(found) * (1 if options else -1)).tolist() == paid
    sampling = ["--model", "lm", "--max-tokens", "8", "--num-minibatches", "2", "--total-steps", "32"]
    for name in ("grpo", "rlhf"):
        pg("train", name, *sampling, "--reward", "steps", "--pay", "sum", "--directory", name, *sums)
        assert figures(pg("resume", name, "--total-steps", "48", "--no-cache"))["steps"] == "48"
    with pytest.raises(pgjax.InputError, match=r"StepOptions.pay = 'all' is not accepted"):
        REWARDS.make("steps", pay="all")
    with pytest.raises(pgjax.InputError, match="reward steps has no option 'reduce'"):
        REWARDS.make("steps", reduce="min")


@pytest.mark.slow
def test_from_nothing_to_a_policy_on_the_command_line(pg, tmp_path):
    """Pretraining, fine-tuning, reward models, a policy, sweeps of it; each looked at, resumed and spoken to."""
    grammar = ["--examples", "64", *TINY]
    lm = ["lm", "--length", "8", "--context", "32", "--total-steps", "512"]
    pg("train", *lm, "--directory", "lm", *NETWORK, *grammar)
    pg("train", "sft", "--model", "lm", "--total-steps", "32", "--directory", "sft", *grammar)
    reward_model = ["reward-model", "--model", "sft", "--references", "8", "--total-steps", "32"]
    pg("train", *reward_model, "--seeds", "2", "--directory", "rm", *grammar)
    rlhf = ["rlhf", "--model", "sft", "--reward", "rm", *RLHF, *grammar]
    out = pg("train", *rlhf, "--beta", "0.1", "--directory", "rlhf")
    assert (figures(out)["model"], figures(out)["steps"]) == ("sft", "16")
    scores = {"reward", "kl_to_start", "entropy", "eos_rate", "length", "win_rate"}
    assert figures(pg("evaluate", "rlhf", "--episodes", "4", "--no-cache")).keys() == scores
    assert len(pg("evaluate", "rm", "--best", "--no-cache").splitlines()) == 3
    completions = pg("generate", "rlhf", "--prompt", "a", "--num", "4", "--no-cache").splitlines()
    assert [line.split()[0] for line in completions] == ["a"] * 4
    assert pg("generate", "lm", "--temperature", "0", "--max-tokens", "3", "--no-cache")
    assert figures(pg("resume", "rlhf", "--total-steps", "32", "--no-cache"))["steps"] == "32"
    assert len(read_rows(tmp_path / "rlhf" / "metrics.jsonl")) == 4

    out = pg("sweep", *rlhf, "--beta", "0.1,1", "--seeds", "2", "--directory", "betas")
    assert (figures(out)["settings"], figures(out)["failed"]) == ("2", "0")
    again = pg("resume", "betas", "--no-cache")
    assert figures(again)["best_score"] == figures(out)["best_score"]
    out = pg("sweep", *rlhf, "--reduce", "mean,min", "--variance-coef", "0,1", "--directory", "reductions")
    assert figures(out)["settings"] == "4"
    out = pg("sweep", *rlhf, "--model", "sft,lm", "--directory", "models")
    rows = (tmp_path / "models" / "members.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["sft", "lm"]
    listed = pg("list", ".")
    assert all(name in listed for name in ("reward-model x 2", "rlhf sweep x 4", "32 / 32"))
    for run in ("lm", "rm", "rlhf"):
        assert pg("plot", run, "--out", "curves").split() == ["curves.png", "curves.svg", "curves.pdf"]
    with pytest.raises(pgjax.InputError, match="betas holds a sweep"):
        language_model("betas")


def saved_model(folder):
    """A random Llama and a byte-level tokenizer, as transformers and tokenizers write them."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, intermediate_size=8, max_position_embeddings=64)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=["<eos>", "<pad>"], **alphabet)
    tokenizer.train_from_iterator(["a dog sees a cat"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "pad_token": "<pad>"}))


@pytest.mark.slow
def test_files_and_a_hugging_face_folder_on_the_command_line(pg, tmp_path):
    """Data of every format that a method reads, for a model that somebody else has made."""
    saved_model(tmp_path / "llama")
    records = {
        "texts": {"text": "a dog {} sees a cat"},
        "completions": {"prompt": "a dog {}", "completion": " sees a cat"},
        "preferences": {"prompt": "a dog {}", "chosen": " sees a cat", "rejected": " sleeps", "margin": 0.5},
        "prompts": {"prompt": "a dog {}"},
    }
    for name, record in records.items():
        rows = [{k: v.format(i) if isinstance(v, str) else v for k, v in record.items()} for i in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "book.txt").write_text("a dog sees a cat. " * 60)
    lm = ["lm", "--length", "16", "--total-steps", "256", *NETWORK, *TINY]
    pg("train", *lm, "--data", "book.txt", "--directory", "bytes")
    pg("train", *lm, "--data", "texts.jsonl", "--tokenizer", "llama", "--directory", "words")
    assert language_model("words").tokenizer == TOKENIZERS.make("llama")

    half = ["--dtype", "bfloat16", "--remat"]
    sft = ["sft", "--model", "llama", "--data", "completions.jsonl", "--total-steps", "16", *TINY]
    pg("train", *sft, *half, "--directory", "sft")
    reward_model = ["reward-model", "--model", "sft", "--data", "preferences.jsonl", "--total-steps", "16", *TINY]
    pg("train", *reward_model, "--references", "8", "--directory", "rm")
    rlhf = ["rlhf", "--model", "sft", "--reward", "rm", "--data", "prompts.jsonl", *RLHF, *TINY]
    pg("train", *rlhf, "--micro-batches", "2", "--directory", "rlhf")
    for run in ("llama", "sft", "rlhf"):
        out = pg("generate", run, "--prompt", "a dog", "--num", "2", "--max-tokens", "4", "--top-k", "9", "--no-cache")
        assert out.startswith("a dog")
    (tmp_path / "llama" / "model.safetensors").unlink()  # of the folder, only the tokenizer is read again
    assert pg("generate", "rlhf", "--prompt", "a dog", "--no-cache")
