"""Texts as conditions, by a toy encoder in a folder."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import text_encoder, toy, trained
from PIL import Image

from vqstack.commands import generate
from vqstack.config import RunConfig
from vqstack.errors import InputError
from vqstack.images import load_splits
from vqstack.texts import TextSettings, encode_texts


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return text_encoder(tmp_path_factory.mktemp("encoder"))


def test_a_text_is_the_same_vector_in_any_company(encoder):
    settings = TextSettings(name=str(encoder), length=8)
    together = encode_texts(settings, ["a red square", "a dark square", "red"])
    assert together.shape == (3, 8) and together.dtype == np.float32
    for row, text in zip(together, ["a red square", "a dark square", "red"], strict=True):
        np.testing.assert_allclose(encode_texts(settings, [text])[0], row, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_pooled_is_the_mean_of_the_sequence(encoder):
    sequence = encode_texts(TextSettings(name=str(encoder), length=8, pooled=False), ["a red square"])[0]
    assert (sequence[5:] == 0).all() and (sequence[:5] != 0).any(1).all()  # begin, three words, end
    pooled = encode_texts(TextSettings(name=str(encoder), length=8), ["a red square"])[0]
    np.testing.assert_allclose(pooled, sequence[:5].mean(0), atol=1e-6)


def test_an_encoder_that_is_not_there_is_refused(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(InputError):
        encode_texts(TextSettings(name=str(tmp_path)), ["a"])


def parquet(folder, texts):
    """Images of 4x4, red or dark, and what is said of them."""
    rows = []
    for text in texts:
        out = io.BytesIO()
        Image.new("RGB", (4, 4), "red" if text and "red" in text else "#202020").save(out, "PNG")
        rows.append({"bytes": out.getvalue(), "path": None})
    path = folder / "images.parquet"
    pq.write_table(pa.table({"image": rows, "caption": texts}), path)
    return path


def data(path, encoder, **changes):
    settings = {"source": "parquet", "files": {"train": str(path)}, "condition": "caption", "validation": 4, "test": 4}
    settings |= {"text_encoder": str(encoder), "text_length": 8, "size": [4, 4], "channels": 3, "values": 256}
    return settings | changes


def test_images_are_given_what_their_texts_are_encoded_to(tmp_path, encoder):
    texts = ["a red square", "a dark square"] * 10
    config = RunConfig.model_validate({"data": data(parquet(tmp_path, texts), encoder)})
    train = load_splits(config.data)["train"]
    wanted = encode_texts(config.data.texts, [texts[i] for i in train.index.tolist()])
    np.testing.assert_allclose(train.condition.numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("texts", [["a red square", None] * 6, [[1.0, 2.0]] * 12], ids=["missing", "floats"])
def test_what_is_no_text_is_refused(tmp_path, encoder, texts):
    path = parquet(tmp_path, ["a"] * 12)
    pq.write_table(pq.read_table(path).set_column(1, "caption", pa.array(texts)), path)
    config = RunConfig.model_validate({"data": data(path, encoder)})
    with pytest.raises(InputError):
        load_splits(config.data)


def test_a_run_is_told_texts_and_draws_by_them(tmp_path, encoder):
    texts = ["a red square", "a dark square"] * 20
    model = trained(toy(data(parquet(tmp_path, texts), encoder), (2, 2)), tmp_path / "run")
    assert model.condition.text == TextSettings(name=str(encoder), length=8)
    generate.main([str(tmp_path / "run"), "--num", "2", "--text", "a red square", "--out", str(tmp_path / "out")])
    floats = torch.from_numpy(encode_texts(model.condition.text, ["a red square"])).expand(2, -1)
    wanted = model.sample(2, condition=floats).pixels
    for number in range(2):
        drawn = np.asarray(Image.open(tmp_path / "out" / f"{number:06d}.png")).transpose(2, 0, 1)
        assert np.array_equal(drawn, wanted[number].numpy())
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text("utf-8"))
    assert ledger["test"]["given"] == "caption"


def test_a_model_without_an_encoder_takes_no_text(tmp_path, encoder):
    for changes in ({"condition": None}, {"text_encoder": None}):
        with pytest.raises(ValueError):
            RunConfig.model_validate({"data": data(tmp_path, encoder, **changes)})
