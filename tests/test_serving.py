"""The program of docs/serving.md, as it stands: its samples, its codes, and what it refuses."""

import io
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from helpers import TINY

import vqstack

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
(PROGRAM,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def model():
    return vqstack.train(vqstack.recipe("digits", **TINY), out="served")


@pytest.fixture
def served(model, monkeypatch):
    """The names of the program, and somebody who asks it."""
    monkeypatch.setattr(vqstack, "load", lambda *_: model)
    names: dict = {}
    exec(PROGRAM, names)
    with TestClient(names["app"]) as client:
        yield names, client
    names["worker"].shutdown()


def images(answer):
    assert answer.status_code == 200, answer.text
    return torch.from_numpy(np.load(io.BytesIO(answer.content)))


def test_it_is_short():
    assert len(PROGRAM.splitlines()) < 60


def test_samples_are_those_of_the_model(served, model):
    _, client = served
    assert images(client.get("/sample?num=3&seed=5")).equal(model.sample(3, seed=5).pixels)
    labels = torch.tensor([7, 7])
    assert images(client.get("/sample?num=2&label=7")).equal(model.sample(2, labels).pixels)


def test_codes_are_those_of_the_model(served, model):
    _, client = served
    pixels = model.sample(2, seed=1).pixels
    answer = client.post("/encode", content=pixels.numpy().tobytes())
    assert answer.json() == {"codes": [level.tolist() for level in model.encode(pixels)]}


@pytest.mark.parametrize(
    ("asked", "words"),
    [("num=17", "num"), ("num=0", "num"), ("seed=-1", "seed"), ("label=none", "label none is no class")],
)
def test_what_is_too_much_or_unknown_is_refused(served, asked, words):
    answer = served[1].get(f"/sample?{asked}")
    assert answer.status_code == 422 and words in answer.text


def test_bodies_have_a_limit(served):
    names, client = served
    assert client.post("/encode", content=bytes(16 * names["size"] + 1)).status_code == 413
    for wrong in (b"", bytes(names["size"] - 1)):
        assert client.post("/encode", content=wrong).status_code == 422
    assert client.post("/encode", content=bytes([255]) * names["size"]).status_code == 422  # no value of digits


def test_a_full_queue_is_told_at_once_and_empties(served, model):
    names, client = served
    go, began, answers = threading.Event(), threading.Event(), []

    def held():
        began.set()
        go.wait(30)

    names["worker"].submit(held)
    assert began.wait(30)
    threads = [
        threading.Thread(target=lambda: answers.append(client.get("/sample?seed=2"))) for _ in range(names["QUEUE"])
    ]
    for thread in threads:
        thread.start()
    while names["places"]._value:  # all have their place
        pass
    refused = client.get("/sample?seed=2")
    assert refused.status_code == 503 and refused.headers["Retry-After"] and not answers
    go.set()
    for thread in threads:
        thread.join()
    wanted = model.sample(1, seed=2).pixels
    assert len(answers) == names["QUEUE"] and all(images(answer).equal(wanted) for answer in answers)
    assert images(client.get("/sample?seed=2")).equal(wanted)


def test_who_waits_too_long_is_told_and_leaves_no_place_taken(served):
    names, client = served
    names["SECONDS"], go = 0.05, threading.Event()
    names["worker"].submit(go.wait, 30)
    assert client.get("/sample").status_code == 503
    assert names["places"]._value == names["QUEUE"]
    go.set()
