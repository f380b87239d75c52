"""The files of model shapes and devices."""

import subprocess
import sys

import pytest
import yaml

from kvbench import cost
from kvbench.cli import main as cli
from kvbench.config.errors import UserError
from kvbench.config.groups import Groups
from kvbench.cost.shapes import from_config

# parameters according to model cards and safetensors indices
PARAMS = {
    "llama31_8b": 8_030_261_248, "llama3_8b": 8_030_261_248, "llama31_70b": 70_553_706_496,
    "mistral_7b_v02": 7_241_732_096, "mistral_7b_v03": 7_248_023_552, "longchat_7b": 6_738_415_616,
    "qwen2_7b": 7_615_616_512, "qwen3_8b": 8_190_735_360,
}  # fmt: skip


def test_every_shape_has_the_parameters_of_its_model():
    assert {name: cost.model_shape(name).params for name in Groups().options("shape")} == PARAMS


def test_every_runnable_model_has_a_shape():
    assert set(Groups().options("model")) <= {*Groups().options("shape"), "smollm2_135m"}


def test_the_embedded_model_is_read_from_its_config():
    shape = cost.model_shape("smollm2_135m")
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == (30, 9, 3, 64)
    assert shape.tied and shape.params == 134_515_008
    assert shape.weights_read() == shape.weight_bytes()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_folder_has_the_shape_of_its_weights(tiny_model_dir, family):
    from safetensors import safe_open

    folder = tiny_model_dir(family)
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert cost.model_shape(str(folder)).params == stored


def test_unknown_shape():
    with pytest.raises(UserError, match=r"did you mean llama31_8b.*smollm2_135m"):
        cost.model_shape("llama31_8")


def test_query_heads_must_be_a_multiple_of_kv_heads():
    config = {
        "model_type": "llama", "num_attention_heads": 9, "num_key_value_heads": 4, "hidden_size": 64,
        "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 10, "max_position_embeddings": 10,
    }  # fmt: skip
    with pytest.raises(UserError, match="not a multiple"):
        from_config(config, "odd")


@pytest.mark.parametrize("name", cost.hardware_names())
def test_devices_are_plausible_and_sourced(name):
    device = cost.hardware(name)
    # attainable rates are below the datasheet's, and not far below except on the L4, which is limited by power
    assert 0.8 < device.bandwidth() / device.bandwidth(peak=True) < 1
    assert (0.45 if name == "l4" else 0.75) < device.flops() / device.flops(peak=True) < 1
    assert device.memory > 20e9 and 0.1 < device.usd_per_hour < 20
    assert all(source["what"] and source["seen"] for source in device.sources.values())


@pytest.mark.parametrize("name", cost.hardware_names())
def test_a_rent_names_its_provider_and_its_date(name):
    device = cost.hardware(name)
    assert device.rent and device.rent.provider in ("Verda", "Lambda", "RunPod")
    assert device.rent_note.startswith(f"{device.rent.provider}, ") and "2026" in device.rent_note
    others = device.rent.others
    if others is None:
        assert "other offers not known" in device.rent_note
    else:
        assert others.low <= device.rent.usd_per_hour <= others.high
        assert f"others ${others.low:.2f} to ${others.high:.2f}, " in device.rent_note


def test_the_note_of_a_rent(tmp_path):
    def note(**rent):
        return cost.hardware(str(write(tmp_path, rent={"usd_per_hour": 1, "source": "M", **rent}))).rent_note

    assert note() == "provider not named, today; other offers not known"
    others = {"low": 0.5, "high": 4, "source": "M"}
    assert note(provider="A", others=others) == "A, today; others $0.50 to $4.00, today"
    assert cost.hardware(str(write(tmp_path))).rent_note == ""


def test_all_devices_are_listed():
    expected = {"a40", "a100_40gb", "a100_80gb", "h100_sxm", "h200", "b200", "l4", "rtx_4090"}
    assert set(cost.hardware_names()) == expected


GOOD = {
    "title": "mine", "memory_mib": 1000, "memory_source": "M", "bandwidth_gb_s": {"attainable": 10, "source": "M"},
    "tflops": {"attainable": 1, "source": "M"}, "sources": {"M": {"what": "measured", "seen": "today"}},
}  # fmt: skip


def write(folder, **changes):
    file = folder / "hardware" / "mine.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump({**GOOD, **changes}))
    return file


def test_a_user_defined_device(tmp_path):
    file = write(tmp_path)
    for device in (cost.hardware(str(file)), cost.hardware("mine", [str(tmp_path)])):
        assert device.name == "mine" and device.bandwidth() == 10e9 and device.usd_per_hour is None
    with pytest.raises(UserError, match="no datasheet"):
        device.bandwidth(peak=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_mib": "much"}, "hardware.mine.memory_mib: 'much' is not a number"),
        ({"memory": 3}, "hardware.mine.memory: there is no key 'memory'"),
        ({"memory_source": "X"}, "there is no source 'X'"),
        ({"rent": {"usd_per_hour": 1}}, "hardware.mine.rent.source: missing"),
        (
            {"rent": {"usd_per_hour": 1, "source": "M", "others": {"low": 2, "high": 1, "source": "M"}}},
            "others: low 2.0 and high 1.0 are not 0 < low <= high",
        ),
        (
            {"rent": {"usd_per_hour": 1, "source": "M", "others": {"low": 1, "high": 2, "source": "X"}}},
            "there is no source 'X'",
        ),
    ],
)
def test_mistakes_name_the_key(tmp_path, changes, message):
    file = write(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        cost.hardware(str(file))


def test_invalid_device_files(tmp_path):
    file = tmp_path / "mine.yaml"
    for text, message in (("- 1", "not the description"), ("a: b: c", "hardware.mine")):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            cost.hardware(str(file))
    with pytest.raises(UserError, match="did you mean h100_sxm"):
        cost.hardware("h100_smx")


def test_prices_of_devices_need_no_torch():
    code = (
        "import sys; from kvbench import cost; cost.hardware('h100_sxm'); cost.model_shape('llama31_8b');"
        "cost.usd_per_million(100, 2.0); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("what", "name"), [("hardware", "h100_sxm"), ("shapes", "llama31_8b")])
def test_ls_lists_devices_and_shapes(capsys, what, name):
    assert cli.main(["ls", what]) == 0
    rows = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert name in rows and all(rows.values())
