"""Secure runs in `koinon.simulate`: real keys, real masks, the deployed model, the plain sum."""

import threading

import numpy as np
import pytest

import koinon
import toy
from koinon_core import codec
from koinon_core.canonical import sha256
from koinon_core.schema import schema_of
from koinon_core.update import Head
from summing import Federation, plus
from toy import NAMES, toy_client, toy_run

MODEL = {"a": np.zeros((40, 30), np.float32), "b": np.linspace(-1, 1, 9), "n": np.zeros(4097, np.float32)}


def change(name: str, round_: int) -> dict[str, np.ndarray]:
    """What a device learns in a round."""
    draw = np.random.default_rng([int(name.rpartition("-")[2]), round_])
    return {n: (draw.standard_normal(a.shape) * 0.01).astype(a.dtype) for n, a in MODEL.items()}


def examples(name: str) -> int:
    return 10 + int(name.rpartition("-")[2])


def learn(session: koinon.Session) -> None:
    model = {n: np.zeros_like(a) for n, a in MODEL.items()}
    for task in session.tasks(model):
        for n, learned in change(session.client, task.round).items():
            model[n] += learned
        task.submit(examples=examples(session.client))


def secure_run(rounds: int = 3, **settings: object) -> koinon.Run:
    given = {"aggregation": "secure", "min_clients": 3, "max_examples": 128, "evaluate": False, **settings}
    return koinon.Run("secure", model=MODEL, rounds=rounds, **given)


def digest_of(model) -> str:
    schema = schema_of(MODEL)
    return sha256(codec.encode(model, schema, "lossless"))


def plain_models(run: koinon.Run, result: koinon.Simulated) -> list[str]:
    """The models of the same rounds over the same devices, from lanes that no mask was ever on."""
    fed = Federation(run.spec, run.model)
    made = [digest_of(fed.model)]
    for r in result.rounds:
        if r.status != "closed":
            fed.tuning = ""  # the machine has the round after one that came to nothing wide again
            continue
        fed.number = r.number - 1
        terms = fed.terms(run.spec.devices)
        made_by = {
            c: fed.prepare(c, terms, plus(fed.model, change(c, r.number)), Head(examples=examples(c)))
            for c in r.clients
        }
        fed.close(terms, made_by)
        made.append(digest_of(fed.model))
    return made


def deployed(run: koinon.Run, client, address: str, clients, names=NAMES) -> koinon.RunHandle:
    handle = run.create(address)

    def device(name: str) -> None:
        with koinon.join(address, run=handle.name, name=name) as session:
            client(session)

    for name in names:
        clients.start(lambda name=name: device(name), name)
    clients.join(60)
    handle.wait()
    return handle


SETTINGS = {
    "balanced": {},
    "compact, keys before training": {"codec": "compact", "keys": "early"},
    "an adaptive step": {"strategy": koinon.FedAdam(lr=0.01), "codec": "fine"},
    "fixed point": {"codec": "exact"},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_secure_run_makes_the_same_model_simulated_and_deployed(case, coordinator, clients):
    run = secure_run(clients=4, **SETTINGS[case])
    handle = deployed(run, learn, coordinator.address, clients)
    simulated = koinon.simulate(run, learn, clients=NAMES)
    assert [r.number for r in simulated.rounds] == [1, 2, 3]
    assert simulated.models[1:] == [digest_of(handle.model(number)) for number in (1, 2, 3)]


@pytest.mark.parametrize("case", SETTINGS)
def test_the_masked_sum_is_the_plain_one_bit_for_bit(case):
    run = secure_run(clients=5, **SETTINGS[case])
    result = koinon.simulate(run, learn, clients=5)
    assert len(result.models) == 4
    assert result.models == plain_models(run, result)


def test_several_groups_make_one_sum():
    run = secure_run(2, groups=3, clients=12)
    result = koinon.simulate(run, learn, clients=12)
    assert [len(r.clients) for r in result.rounds] == [12, 12]
    assert result.models == plain_models(run, result)


def test_devices_that_fall_silent_are_in_the_sum_or_not_and_the_masks_come_off_all_the_same():
    run = secure_run(8, clients=12, deadline=30.0, lease=10.0, phase=5.0, join_wait=5.0, delta=0.3)

    def play(drop: float) -> koinon.Simulated:
        return koinon.simulate(run, learn, clients=12, faults=koinon.Faults(delay=2.0, drop=drop), seed=3)

    late, lost = play(0.0), play(0.2)
    assert {len(r.clients) for r in late.rounds} == {12}, "who is late is waited for"
    assert len({len(r.clients) for r in lost.rounds if r.status == "closed"}) > 2
    assert late.models == plain_models(run, late)
    assert lost.models == plain_models(run, lost)


def test_another_attempt_at_a_sum_masks_the_same_updates():
    """Two of four fall silent once they have advertised keys: the others begin again without them."""
    met = []

    def client(session: koinon.Session) -> None:
        send = session._talk._send

        def unlucky(message) -> None:
            if message.WhichOneof("says") == "voice" and message.voice.collection == "shares":
                met.append((session.client, message.voice.attempt))
                if session.client in ("client-4", "client-5") and message.voice.round == 1:
                    return
            send(message)

        session._talk._send = unlucky
        learn(session)

    run = secure_run(2, clients=6, lease=10.0, phase=5.0)
    result = koinon.simulate(run, client, clients=6)
    assert result.rounds[0].clients == tuple(NAMES)
    assert ("client-0", 1) in met
    assert result.models == plain_models(run, result)


def test_scaffold_reaches_the_closed_form_though_nobody_sees_an_update():
    run = toy_run(koinon.Scaffold(), 60, aggregation="secure", codec="exact", evaluate=False)
    result = koinon.simulate(run, toy_client((10,) * 4), clients=NAMES)
    assert float(result.model["x"][0]) == pytest.approx(0.866666667, abs=1e-5)


def test_an_adaptive_step_by_a_sum_is_that_by_the_updates():
    def x(**settings):
        run = toy_run(koinon.FedAdam(lr=0.3), 12, evaluate=False, **settings)
        return float(koinon.simulate(run, toy_client(toy.TAU), clients=NAMES).model["x"][0])

    assert x(aggregation="secure", codec="exact") == pytest.approx(x(aggregation="open"), abs=1e-5)


def test_metrics_are_those_of_an_open_run_and_come_out_of_the_sum_alone():
    def client(session):
        i = int(session.client[-1])
        model = {"x": np.zeros(1)}
        said = {"loss": i / 3, "accuracy": 0.25, "private": 1.0}
        for task in session.tasks(model, evaluate=lambda m: {"loss": float(m["x"][0]), "examples": toy.N[i]}):
            model["x"] += 1.0
            task.submit(examples=toy.N[i], metrics=said)

    def metrics(**settings):
        run = toy_run(koinon.FedAvg(), 2, **settings)
        return koinon.simulate(run, client, clients=NAMES)

    seen, summed = metrics(aggregation="open"), metrics(aggregation="secure", codec="exact")
    assert [(r.number, r.status) for r in summed.rounds] == [(n, "closed") for n in (1, 2, 3)]
    assert summed.metrics.keys() == seen.metrics.keys() == {0, 1, 2}
    for number, wanted in seen.metrics.items():
        # Of a metric that the run does not name there is no lane.
        wanted = {n: v for n, v in wanted.items() if n != "train.private"}
        assert summed.metrics[number] == pytest.approx(wanted, abs=1e-6)
    assert seen.metrics[1]["train.private"] == 1.0


@pytest.mark.parametrize(
    ("count", "hardened"), [(30, True), (70, False)]
)  # everybody's neighbour, and some's
def test_a_federation_of_many_is_simulated(count, hardened):
    run = secure_run(1, clients=count, hardened=hardened)
    result = koinon.simulate(run, learn, clients=count)
    assert len(result.rounds[0].clients) == count
    assert result.models == plain_models(run, result)


def test_nothing_of_a_simulation_is_done_on_a_thread_that_nobody_waits_for():
    seen, others = set(), {thread.name for thread in threading.enumerate()}

    def client(session):
        model = {n: np.zeros_like(a) for n, a in MODEL.items()}
        for task in session.tasks(model):
            seen.update(thread.name for thread in threading.enumerate())
            task.submit(examples=1)

    koinon.simulate(secure_run(2), client, clients=3)
    assert {name for name in seen - others if "client" in name} == {f"koinon-client-{i}" for i in range(3)}


FIFTEEN = [f"device-{i:02}" for i in range(15)]


def learn_but_one(session: koinon.Session) -> None:
    """All learn the same, and one the opposite a hundred times over: whoever is in its group, the groups without it say
    the same."""
    lies = -100.0 if session.client == FIFTEEN[6] else 1.0
    model = {n: np.zeros_like(a) for n, a in MODEL.items()}
    for task in session.tasks(model):
        for n, learned in change("device-0", task.round).items():
            model[n] += learned * lies
        task.submit(examples=7)


def apart_run(rounds: int = 2, **settings: object) -> koinon.Run:
    given = {"clients": 15, "groups": 5, "codec": "exact", "clip": 1000.0, **settings}
    return secure_run(rounds, strategy=koinon.chain(koinon.FedAvg(), koinon.CoordinateMedian()), **given)


def honest(rounds: int) -> dict[str, np.ndarray]:
    model = {n: np.array(a) for n, a in MODEL.items()}
    for round_ in range(1, rounds + 1):
        model = {n: a + change("device-0", round_)[n] for n, a in model.items()}
    return model


def test_a_rule_between_groups_makes_the_same_model_simulated_and_deployed(coordinator, clients):
    run = apart_run()
    handle = deployed(run, learn_but_one, coordinator.address, clients, FIFTEEN)
    simulated = koinon.simulate(run, learn_but_one, clients=FIFTEEN)
    assert simulated.models[1:] == [digest_of(handle.model(number)) for number in (1, 2)]
    assert [r.metrics["groups"] for r in simulated.rounds] == [5, 5]
    assert [r.metrics["groups"] for r in handle.rounds()] == [5, 5]
    for name, wanted in honest(2).items():
        assert np.abs(simulated.model[name] - wanted).max() < 1e-5


def test_a_liar_moves_the_sum_of_all_and_not_a_rule_between_groups():
    plain = koinon.simulate(
        secure_run(2, clients=15, codec="exact", clip=1000.0), learn_but_one, clients=FIFTEEN
    )
    judged = koinon.simulate(apart_run(codec="balanced"), learn_but_one, clients=FIFTEEN)

    def off(model) -> float:
        return max(float(np.abs(model[n] - a).max()) for n, a in honest(2).items())

    assert off(judged.model) < 0.01 < 0.1 < off(plain.model)


def test_a_round_whose_groups_are_too_few_is_abandoned_by_name():
    run = apart_run(
        1, clients=16, groups=5, min_clients=3, patience=1, attempts=1, deadline=20.0, lease=10.0, phase=5.0,
        join_wait=5.0,
    )  # fmt: skip
    names = [*FIFTEEN, "device-15"]
    with pytest.raises(
        koinon.RunEnded, match=r"gave up: too few masked updates arrived, which leaves [0-4] of at least 5"
    ):
        koinon.simulate(run, learn_but_one, clients=names, faults=koinon.Faults(delay=1.0, drop=0.5), seed=1)
