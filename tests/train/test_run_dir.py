"""Which config may go on with a run directory."""

import dataclasses
import json

import pytest

from fastweights.errors import ConfigError
from fastweights.models.retrieval import RetrievalModel
from fastweights.tasks.retrieval import Retrieval
from fastweights.train.config import Config, Mesh, to_json
from fastweights.train.run_dir import open_run
from fastweights.train.seeds import Nets

CONFIG = Config(task=Retrieval(), model=RetrievalModel())


@pytest.mark.parametrize("config", [CONFIG, Nets(CONFIG, (1, 2))], ids=["one", "several"])
def test_a_run_of_a_version_with_fewer_fields_is_gone_on_with(tmp_path, config):
    """What a field did before it existed is its default; any other value is another run."""
    open_run(tmp_path, config)
    file = tmp_path / "config.json"
    old = json.loads(file.read_text())
    inner = old["config"] if "config" in old else old
    del inner["mesh"]["tensor"], inner["start"]
    file.write_text(json.dumps(old))
    open_run(tmp_path, config)
    assert json.loads(file.read_text()) == to_json(config)
    file.write_text(json.dumps(old))
    wider = dataclasses.replace(CONFIG, mesh=Mesh(tensor=2))
    other = wider if config is CONFIG else Nets(wider, (1, 2))
    with pytest.raises(ConfigError, match="mesh.tensor: the run has 1, asked for 2"):
        open_run(tmp_path, other)


def test_a_run_of_another_kind_is_refused(tmp_path):
    open_run(tmp_path, Nets(CONFIG, (1,)))
    with pytest.raises(ConfigError, match="type: the run has Nets, asked for Config"):
        open_run(tmp_path, CONFIG)
