"""Shared contexts against a plain forward pass over the whole sequence."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import random_parameters

from stepjax.lm import decode, generate
from stepjax.lm import model as lm
from stepjax.lm.sampler import Sampler
from stepjax.lm.sharding import make_mesh

PADDED, VOCAB = 48, 45  # rows of the embedding, and ids that exist
NEW = 6
CONFIG = lm.ModelConfig(
    vocab_size=PADDED,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
)
MODEL = lm.Decoder(CONFIG)
NO_STOPS = np.zeros((2, VOCAB), np.int32) + np.array([[0], [1]], np.int32)

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="session")
def params():
    return random_parameters(lm.abstract_params(MODEL))


@functools.partial(jax.jit, static_argnums=2)
def _plain_logits(params, tokens, length):
    position = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    end = jnp.full(tokens.shape, length)
    hidden = MODEL.apply({"params": params}, tokens, position, end)
    return lm.logits(params, hidden)


@pytest.fixture(scope="session")
def plain(params):
    """ids → logits after each of them, [len(ids), PADDED], without any cache."""

    def logits(ids):
        tokens = np.zeros((1, 128), np.int32)
        tokens[0, : len(ids)] = ids
        return np.asarray(_plain_logits(params, tokens, 128))[0, : len(ids)]

    return logits


def log_softmax(logits):
    wide = np.asarray(logits, np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def check_row(plain, context, tokens, logps, *, greedy):
    """Compares one sampled row with the plain forward pass, token by token."""
    ids = [*context, *tokens]
    logits = plain(ids)[len(context) - 1 : -1, :VOCAB]
    expected = log_softmax(logits)[np.arange(len(tokens)), tokens]
    np.testing.assert_allclose(logps, expected, atol=2e-4)
    if greedy:
        np.testing.assert_array_equal(tokens, logits.argmax(-1))
        ordered = np.sort(logits, -1)
        assert (ordered[:, -1] - ordered[:, -2]).min() > 1e-4  # no near tie


def some_ids(seed, count):
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def sample(sampler, slots, prompts, seed=0, temperature=0.0, budget=NEW, share=()):
    shape = (len(prompts), len(prompts[0]))
    paths = np.stack(np.indices(shape), -1).astype(np.uint32)
    stops = jnp.asarray(NO_STOPS)
    decoding = generate.Decoding(seed, temperature, 1.0, stops, VOCAB, budget)
    return sampler.sample(
        prompts, paths, decoding, slots=slots, share=share, capacity=NEW
    )


@pytest.fixture
def counted(monkeypatch):
    """How often contexts were computed and appended."""
    calls = {"extend": 0, "append": 0}

    def count(name):
        real = getattr(generate, name)

        def counting(*args, **kwargs):
            calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(generate, name, counting)

    count("extend")
    count("append")
    return calls


def step(sampler, plain, contexts, temperature, round_number):
    """Brings the slots to the contexts, samples three rows each, checks every row."""
    sampler.hold({slot: ids[:-1] for slot, ids in contexts.items()})
    prompts = [[()] * 3 for _ in sampler.held]
    for slot, ids in contexts.items():
        assert sampler.held[slot] == ids[:-1]
        prompts[slot] = [ids[-1:]] * 3
    out = sample(sampler, None, prompts, seed=round_number, temperature=temperature)
    for slot, ids in contexts.items():
        assert out.count[slot].tolist() == [NEW] * 3
        for w in range(3):
            check_row(
                plain,
                ids,
                out.tokens[slot, w],
                out.logps[slot, w],
                greedy=temperature == 0,
            )
    return out


def test_steps_behind_shared_contexts_equal_a_plain_forward(
    params, one_device, plain, counted
):
    sampler = Sampler(MODEL, params, one_device, 3, 60)
    contexts = {0: some_ids(1, 5), 1: some_ids(2, 11), 2: some_ids(4, 2)}
    history = {slot: [list(ids)] for slot, ids in contexts.items()}

    def choose(out, *choices):
        """Appends the first tokens of a row to the context of each slot."""
        for slot, row, count in choices:
            contexts[slot] = contexts[slot] + out.tokens[slot, row, :count].tolist()
            history[slot].append(contexts[slot])

    out = step(sampler, plain, contexts, 0.0, 0)
    assert counted == {"extend": 1, "append": 0}
    choose(out, (0, 0, 4), (1, 1, NEW), (2, 2, 1))

    out = step(sampler, plain, contexts, 1.0, 1)
    # Three different rows each, or choosing among them would prove nothing.
    assert len({row.tobytes() for slot in out.tokens for row in slot}) == 9
    choose(out, (0, 2, 5), (1, 0, 2), (2, 1, NEW))
    out = step(sampler, plain, contexts, 1.0, 2)
    choose(out, (0, 1, NEW), (1, 2, 3), (2, 0, 4))
    out = step(sampler, plain, contexts, 0.0, 3)
    # Chosen steps were appended by a gather; nothing was computed twice.
    assert counted == {"extend": 1, "append": 3}

    # Slot 1 goes back two steps, slots 0 and 2 go on.
    choose(out, (0, 0, 3), (2, 0, 2))
    contexts[1] = history[1][-3]
    out = step(sampler, plain, contexts, 0.0, 4)
    assert counted == {"extend": 1, "append": 4}
    choose(out, (0, 0, 1), (1, 1, 5), (2, 0, NEW))
    out = step(sampler, plain, contexts, 1.0, 5)
    assert counted == {"extend": 1, "append": 5}

    # Slot 2 is finished: its rows are unused, and then it gets another problem.
    choose(out, (0, 1, 4), (1, 2, 4))
    del contexts[2]
    out = step(sampler, plain, contexts, 0.0, 6)
    assert out.count[2].tolist() == [0, 0, 0] and not out.tokens[2].any()
    choose(out, (0, 0, 4), (1, 0, 4))
    contexts[2] = some_ids(5, 9)
    out = step(sampler, plain, contexts, 0.0, 7)
    assert counted == {"extend": 2, "append": 7}
    choose(out, (0, 0, 2), (1, 0, 2), (2, 0, 2))
    step(sampler, plain, contexts, 1.0, 8)
    assert counted == {"extend": 2, "append": 8}
    # Going back to a context and then forward on another branch.
    contexts[0] = [*history[0][2], *some_ids(6, 3)]
    step(sampler, plain, contexts, 0.0, 9)
    assert counted == {"extend": 3, "append": 8}


def test_hold_computes_what_sampling_never_fed(params, one_device, plain):
    sampler = Sampler(MODEL, params, one_device, 3, 60)
    contexts = {slot: some_ids(20 + slot, 7) for slot in range(3)}
    sampler.hold({slot: ids[:-1] for slot, ids in contexts.items()})
    prompts = [[contexts[slot][-1:]] * 3 for slot in range(3)]
    out = sample(sampler, None, prompts, budget=3)
    assert out.count.tolist() == [[3] * 3] * 3
    # The last token was drawn but not fed, nor was the 0 that fills the row up.
    sampled = out.tokens[:, 0, :3].tolist()
    contexts[0] = contexts[0] + sampled[0]
    contexts[1] = contexts[1] + sampled[1] + [0]
    # What was sampled behind seven tokens can not be appended to four of them.
    assert contexts[2][4] != contexts[2][6]
    contexts[2] = contexts[2][:4] + contexts[2][6:] + sampled[2][:2]
    sampler.hold(contexts)
    assert sampler.held == [contexts[slot] for slot in range(3)]
    prompts = [[[slot + 7]] * 3 for slot in range(3)]
    out = sample(sampler, None, prompts)
    for slot in range(3):
        ids = [*contexts[slot], slot + 7]
        check_row(plain, ids, out.tokens[slot, 0], out.logps[slot, 0], greedy=True)


def judge_like(seed):
    """Groups with ragged prompts: several of one slot, unused rows, many lengths."""
    rng = np.random.default_rng(seed)
    sizes = [[1, 9, 16, 0], [20, 2, 0, 0], [5, 5, 17, 3], [12, 0, 0, 0], [4, 7, 1, 8]]
    groups = [2, 0, 0, 1, 2]
    prompts = [[rng.integers(0, VOCAB, n).tolist() for n in row] for row in sizes]
    return groups, prompts


def test_ragged_prompts_behind_contexts_equal_a_plain_forward(
    params, one_device, plain
):
    sampler = Sampler(MODEL, params, one_device, 3, 60)
    held = {0: some_ids(7, 30), 1: [], 2: some_ids(8, 13)}
    sampler.hold(held)
    groups, prompts = judge_like(9)
    # The empty context needs a prompt to start from; all of its rows have one.
    for temperature in (0.0, 0.9):
        out = sample(sampler, groups, prompts, temperature=temperature)
        assert out.tokens.shape == (5, 4, NEW)
        for g, slot in enumerate(groups):
            for w, prompt in enumerate(prompts[g]):
                if not prompt:
                    assert out.count[g, w] == 0 and not out.tokens[g, w].any()
                    continue
                assert out.count[g, w] == NEW
                check_row(
                    plain,
                    [*held[slot], *prompt],
                    out.tokens[g, w],
                    out.logps[g, w],
                    greedy=temperature == 0,
                )
    assert sampler.held == [held[0], held[1], held[2]]


def test_score_equals_log_softmax_of_a_plain_forward(params, one_device, plain):
    sampler = Sampler(MODEL, params, one_device, 3, 90)
    held = {0: some_ids(10, 70), 1: some_ids(11, 1), 2: some_ids(12, 13)}
    sampler.hold(held)
    groups, rows = judge_like(13)
    scored = np.array(
        [[0, 4, 5, 0], [3, 1, 0, 0], [2, 4, 5, 1], [5, 0, 0, 0], [3, 5, 0, 1]]
    )
    out = sampler.score(rows, scored, vocab=MODEL.config.vocab_size, slots=groups)
    assert out.shape == (5, 4)
    for g, slot in enumerate(groups):
        for w, row in enumerate(rows[g]):
            ids, count = [*held[slot], *row], scored[g, w]
            table = log_softmax(plain(ids))
            places = np.arange(len(ids) - count, len(ids))
            expected = table[places - 1, np.array(ids)[places]].sum() if count else 0.0
            assert out[g, w] == pytest.approx(expected, abs=2e-4)
    assert (out[scored == 0] == 0).all() and (out[scored > 0] < 0).all()


def alike(seed):
    """Groups of six rows, in two blocks of three that begin alike; some are unused."""
    rng = np.random.default_rng(seed)
    groups, prompts = [2, 0, 0, 1], []
    for first, second in [(20, 5), (3, 17), (1, 0), (0, 9)]:
        prompts.append([])
        for size in (first, second):
            lead = rng.integers(0, VOCAB, size).tolist()
            ends = [rng.integers(0, VOCAB, n).tolist() for n in (1, 19, 6)]
            prompts[-1] += [lead + end for end in ends]
    prompts[1][4] = prompts[2][3] = prompts[2][4] = prompts[2][5] = []
    prompts[0][1] = prompts[0][0]  # one row is where the other two of its block begin
    return groups, prompts


@pytest.mark.parametrize("share", [(3,), (6, 3)])
def test_rows_that_begin_alike_share_a_lead(params, one_device, plain, share):
    sampler = Sampler(MODEL, params, one_device, 3, 60)
    held = {0: some_ids(17, 30), 1: some_ids(19, 4), 2: some_ids(18, 13)}
    sampler.hold(held)
    groups, prompts = alike(15)
    whole = sample(sampler, groups, prompts)
    out = sample(sampler, groups, prompts, share=share)
    np.testing.assert_array_equal(out.tokens, whole.tokens)
    np.testing.assert_array_equal(out.count, whole.count)
    for g, slot in enumerate(groups):
        for w, prompt in enumerate(prompts[g]):
            if prompt:
                ids = [*held[slot], *prompt]
                check_row(plain, ids, out.tokens[g, w], out.logps[g, w], greedy=True)
    scored = np.array([[min(5, max(0, len(p) - 1)) for p in ps] for ps in prompts])
    for sharing in (share, ()):
        logps = sampler.score(
            prompts, scored, vocab=PADDED, slots=groups, share=sharing
        )
        for g, slot in enumerate(groups):
            for w, prompt in enumerate(prompts[g]):
                ids, count = [*held[slot], *prompt], scored[g, w]
                table = log_softmax(plain(ids))
                places = np.arange(len(ids) - count, len(ids))
                expected = table[places - 1, np.array(ids)[places]].sum()
                assert logps[g, w] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_run_one_by_one_as_in_a_scan(dtype):
    """A model of 6 layers is scanned; on a CPU, a sampler runs its layers in turn."""
    config = dataclasses.replace(CONFIG, num_layers=6, dtype=dtype)
    model = lm.Decoder(config)
    params = random_parameters(lm.abstract_params(model))
    one_by_one = lm.by_layer(params)
    assert len(one_by_one["layers"]) == 6
    ids = [3, 14, 15, 9, 26, 5, 35, 8]
    prompt, later = jnp.asarray([[ids[:5]]]), jnp.asarray([[ids[5:]]])
    start = jnp.zeros((1, 1), jnp.int32)

    @jax.jit
    def both_parts(params):
        contexts = generate.empty_contexts(config, 1, 8, "float32")
        nothing = jnp.zeros(1, jnp.int32)
        shared = (generate._contexts(contexts, None, nothing, 8),)
        first, new = decode.forward(config, params, prompt, start, shared)
        suffix = decode.write(decode.empty_suffix(new, 8), new)
        second, _ = decode.forward(config, params, later, start, shared, suffix=suffix)
        return jnp.concatenate([first, second], 2)

    tolerance = {"float32": 1e-5, "bfloat16": 0.05}[dtype]
    np.testing.assert_allclose(
        np.asarray(both_parts(one_by_one), np.float32),
        np.asarray(both_parts(params), np.float32),
        atol=tolerance,
        rtol=tolerance,
    )


def test_a_sampler_on_a_cpu_scores_a_deep_model_like_a_forward_pass():
    model = lm.Decoder(dataclasses.replace(CONFIG, num_layers=6))
    params = random_parameters(lm.abstract_params(model))
    sampler = Sampler(model, params, make_mesh(devices=jax.devices()[:1]), 1, 64)
    assert len(sampler.params["layers"]) == 6
    ids = [3, 14, 15, 9, 26, 5, 35, 8]
    sampler.hold({0: ids[:4]})
    scores = sampler.score([[ids[4:]]], np.array([[3]]), vocab=VOCAB, slots=[0])
    index = jnp.arange(len(ids))[None]
    hidden = model.apply({"params": params}, jnp.asarray([ids]), index, 0 * index + 8)
    logps = log_softmax(lm.logits(params, hidden)[0, :, :VOCAB])
    expected = sum(logps[i - 1, ids[i]] for i in (5, 6, 7))
    np.testing.assert_allclose(scores, [[expected]], rtol=1e-5)
