"""Folders that should harm: code of their own, kernels, impossible numbers, templates; none runs, each is refused."""

from __future__ import annotations

import builtins
import json
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch
import transformers

from models import tiny, write_tiny_llama
from weightsmith import embedded
from weightsmith.cli.main import main
from weightsmith.core.data import _chat, render_chat
from weightsmith.core.errors import CalibrationError, CheckpointError, UnsupportedModelError
from weightsmith.core.io import load_config, load_model, meta_model, offloaded
from weightsmith.core.metrics import sample_text
from weightsmith.embedded import load_processor, load_tokenizer, open_model


@pytest.fixture
def model(tmp_path):
    write_tiny_llama(tmp_path, 4, 8)
    return tmp_path / "tiny"


def edit(file, **fields):
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | fields))


@pytest.fixture
def evil(model, tmp_path, monkeypatch):
    """A folder of an unknown type whose code leaves a mark, and a user who would say yes."""
    classes = ("Config", "Model", "Tokenizer", "Processor")
    body = f"open({str(tmp_path / 'ran')!r}, 'w')\n" + "".join(f"class {name}: pass\n" for name in classes)
    (model / "evil.py").write_text(body)
    auto = {f"Auto{name}": f"evil.{name}" for name in ("Config", "Model")}
    edit(model / "config.json", model_type="evil", architectures=["Model"], auto_map=auto | {
        "AutoModelForCausalLM": "evil.Model"
    })  # fmt: skip
    auto = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    edit(model / "tokenizer_config.json", tokenizer_class="Tokenizer", auto_map=auto)
    auto = {"AutoImageProcessor": "evil.Processor", "AutoProcessor": "evil.Processor"}
    edit(model / "preprocessor_config.json", image_processor_type="Processor", auto_map=auto)
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    yield model
    assert not (tmp_path / "ran").exists(), "its code ran"


@pytest.mark.parametrize("load", [load_config, load_model, meta_model, open_model, load_tokenizer, load_processor])
def test_code_of_a_checkpoint_never_runs(evil, load):
    with pytest.raises(UnsupportedModelError, match=r"tiny needs Python code of its own .* never run. Take a model"):
        load(evil)


def test_nor_when_it_is_offloaded(evil, tmp_path):
    with pytest.raises(UnsupportedModelError, match="needs Python code of its own"):
        with offloaded(evil, tmp_path / "out"):
            pass


@pytest.mark.parametrize("command", ["sparsify magnitude {model} {out}", "analyze condition {model}"])
def test_nor_from_the_command_line(evil, tmp_path, capsys, command):
    with pytest.raises(SystemExit):
        main(command.format(model=evil, out=tmp_path / "out").split())
    error = capsys.readouterr().err
    assert "needs Python code of its own" in error or "condition" in command
    assert "a bug" not in error


def test_code_of_a_known_type_is_ignored(evil, tmp_path):
    edit(evil / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    assert isinstance(load_model(evil), transformers.LlamaForCausalLM)


def test_a_kernel_is_not_downloaded(model):
    edit(model / "config.json", attn_implementation="evil/kernel")
    with pytest.raises(UnsupportedModelError, match="asks for the attention kernel evil/kernel"):
        load_model(model)


@pytest.mark.parametrize("value", [10**9, 10**18, 10**30, -1, 0, 1.5, "many", None, [], {}, True])
@pytest.mark.parametrize(
    "field", ["num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "intermediate_size", "head_dim"]
)
def test_impossible_numbers_are_refused_before_they_fill_the_memory(model, field, value):
    edit(model / "config.json", **{field: value})
    possible = value in (None, True) or field == "head_dim"
    with pytest.raises(CheckpointError, match="tiny") if not possible else suppress(CheckpointError):
        load_model(model)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "3", "null", "{", '"x"', '{"model_type": 3}', '{"model_type": []}', '{"architectures": 5}',
        '{"model_type": "llama"}', '{"model_type": "llama", "architectures": [3]}',
        '{"model_type": "llama", "architectures": ["Trainer"]}', '{"model_type": "llama", "architectures": ["nn"]}',
        '{"model_type": "llama", "architectures": ["LlamaConfig"]}',
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float99"}',
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_parameters": {"rope_type": "evil"}}',
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "x"}}',
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "evil"}',
        "[" * 5000,
    ],
)  # fmt: skip
def test_damaged_configurations_are_refused(model, text):
    (model / "config.json").write_text(text)
    for load in (load_model, meta_model):
        with pytest.raises(CheckpointError, match="tiny|no class for model type"):
            load(model)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny BERT with MiniLM's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    tiny("bert")[0].save_pretrained(folder)
    embedded.load_tokenizer(embedded.folder("minilm")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"model": 3}', '{"tokenizer_class": 3}', "[" * 5000])
def test_damaged_tokenizers_are_refused(bert, tmp_path, file, text):
    shutil.copytree(bert, tmp_path / "bert")
    (tmp_path / "bert" / file).write_text(text)
    with suppress(CheckpointError):  # transformers does without some of them
        load_tokenizer(tmp_path / "bert")


def test_a_vocabulary_alone_is_a_tokenizer(tmp_path):
    tokenizer = embedded.load_tokenizer(embedded.folder("minilm"))
    tiny("bert")[0].save_pretrained(tmp_path / "bert")
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")
    loaded = open_model(tmp_path / "bert").tokenizer
    assert loaded("a blacksmith")["input_ids"] == tokenizer("a blacksmith")["input_ids"]


@pytest.fixture(scope="module")
def writer():
    tokenizer = embedded.load_tokenizer(embedded.folder("minilm"))
    model, _ = tiny("llama")
    model.resize_token_embeddings(len(tokenizer))
    return model, tokenizer


@pytest.mark.parametrize(
    "template",
    ["{{", "{% endfor %}", "{{ nothing.at.all }}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}", "{{ messages[9].x }}",
     "{{ raise_exception('no') }}", "{% for i in range(10 ** 9) %}x{% endfor %}", "{{ 'x' + 1 }}",
     "{% include '/etc/passwd' %}", "{{ 'x' * 10 ** 15 }}", "{{ messages | map('evil') | list }}"],
)  # fmt: skip
def test_hostile_chat_templates_are_refused(writer, template):
    model, tokenizer = writer
    tokenizer.chat_template = template
    with torch.no_grad(), pytest.raises(CalibrationError, match="chat template"):
        sample_text(model, tokenizer, "hello", new_tokens=1)


NESTED = "{% for i in range(99999) %}" * 3 + "x" + "{% endfor %}" * 3


@pytest.mark.parametrize(
    "template",
    [
        NESTED,
        NESTED.replace("x", "").replace("range(99999)", "('a' * 99999)"),
        "{% macro f(n) %}{% for i in range(99) %}{{ f(n - 1) if n }}{% endfor %}{% endmacro %}{{ f(60) }}",
        "{% set s = namespace(x='x') %}{% for i in range(99) %}{% set s.x = s.x ~ s.x %}{% endfor %}{{ s.x }}",
        "{% set s = 'x' * 10 ** 7 %}{% for i in range(9999) %}{{ s }}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ '%99999999999d' % 1 }}",
    ],
)
def test_chat_templates_without_end_are_stopped(writer, monkeypatch, tmp_path, template):
    monkeypatch.setattr(_chat, "SECONDS", 1)
    _chat._process.stop()  # the next one is started with it
    model, tokenizer = writer
    (tmp_path / "chat_template.jinja").write_text(template)
    monkeypatch.setattr(tokenizer, "name_or_path", str(tmp_path))
    tokenizer.chat_template = template
    tracemalloc.start()
    with torch.no_grad(), pytest.raises(CalibrationError, match=rf"chat template of {tmp_path}/chat_template.jinja"):
        sample_text(model, tokenizer, "hello", new_tokens=1)
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()
    tokenizer.chat_template = "{{ messages[0].content }}"  # the next one is written
    assert render_chat(tokenizer, [{"role": "user", "content": "hello"}]) == "hello"


def test_a_chat_is_written_as_transformers_writes_it_in_any_thread(monkeypatch):
    tokenizer = embedded.load_tokenizer(embedded.folder("smollm2"))
    chats = [
        [{"role": "user", "content": f"{n} 🔨 \u2028\n"}, {"role": "assistant", "content": None, "name": "x"}]
        for n in range(40)
    ]
    chats = [[chat[0], {**chat[1], "content": "yes"}] for chat in chats]
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(lambda chat: render_chat(tokenizer, chat, ask=True), chats))
    assert written == [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats
    ]
