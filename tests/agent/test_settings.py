"""The settings file: defaults work, and every mistake is one line that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab import Exit, TrimtabError
from trimtab.agent.settings import AgentSettings, Section, read, state_dir


class Whole(Section, frozen=True):
    agent: AgentSettings = AgentSettings()


def test_no_file_is_all_defaults() -> None:
    assert read(None, Whole) == Whole()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trimtab.toml"
    path.write_text('[agent]\nnode = "n1"\nwindow_seconds = 0.5\ndisable = ["gpu"]\nlabels = { rack = "r7" }\n')
    agent = read(path, Whole).agent
    assert (agent.node, agent.window_seconds, agent.disable, agent.labels) == ("n1", 0.5, ("gpu",), {"rack": "r7"})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[agent]\nwindow_seconds = 0.01", "agent.window_seconds"),
        ("[agent]\nwindow_seconds = 61", "agent.window_seconds"),
        ("[agent]\nwindow_seconds = nan", "agent.window_seconds"),
        ('[agent]\nwindow_seconds = "1"', "agent.window_seconds"),
        ("[agent]\nsampling_probability = 0", "agent.sampling_probability"),
        ("[agent]\nspool_bytes_max = 1", "agent.spool_bytes_max"),
        ('[agent]\ncollector = "nowhere"', "agent.collector"),
        ("[agent]\nnod = 1", "nod"),
        ("[agnt]", "agnt"),
        ("[agent", "not valid TOML"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, text: str, names: str) -> None:
    path = tmp_path / "trimtab.toml"
    path.write_text(text)
    with pytest.raises(TrimtabError) as caught:
        read(path, Whole)
    message = str(caught.value)
    assert caught.value.exit_code == Exit.SETTINGS
    assert names in message
    assert str(path) in message
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrimtabError, match=r"gone\.toml"):
        read(tmp_path / "gone.toml", Whole)


def test_the_state_directory_is_made_and_must_be_writable(tmp_path: Path) -> None:
    assert state_dir(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(TrimtabError, match=r"file.*--state") as caught:
        state_dir(tmp_path / "file")
    assert caught.value.exit_code == Exit.STATE


def test_systemd_and_the_user_say_where_state_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "s"))
    assert state_dir(None) == tmp_path / "s"
