"""Every sentence of the page is in `strings`, and in both localizations."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
JAVASCRIPT = sorted((ROOT / "javascript").glob("*.js"))


@pytest.fixture
def strings(webui):
    from lib_async_mover.webui.page import strings

    return strings


@pytest.mark.parametrize("language", ["zh_CN", "ja_JP"])
def test_a_localization_has_all_sentences_with_all_their_numbers(strings, language):
    translated = json.loads((ROOT / "localizations" / f"{language}.json").read_text(encoding="utf-8"))
    assert list(translated) == strings.translatable()
    for english, other in translated.items():
        assert english.count("{}") == other.count("{}"), english


def test_the_page_asks_for_no_sentence_that_is_not_there_and_none_is_idle(strings):
    source = "".join(path.read_text() for path in JAVASCRIPT)
    used = set(re.findall(r"\btexts\.(\w+)", source))
    in_markup = {"asked", "nothing", "curve_axis_x", "curve_axis_y"}
    assert used - set(strings.LIVE) == set()
    assert set(strings.LIVE) - used - in_markup == set()


def test_no_string_with_jargon_outside_the_details(strings):
    for name, text in strings.LIVE.items():
        if name not in ("used", "streamed", "step_predicted", "pinned_pageable", "blocks_note"):
            assert not any(word in text for word in ("bound", "page-locked", "take turns", "UNet")), name


def test_no_script_touches_what_wakes_every_extension():
    for path in JAVASCRIPT:
        for verb in ("innerHTML", "appendChild", "createElement", "insertBefore", "textContent =", "innerText ="):
            assert verb not in path.read_text(), f"{path.name}: {verb}"


def test_nothing_is_fetched_from_elsewhere():
    for path in (*JAVASCRIPT, ROOT / "style.css"):
        assert re.search(r"://|[\"'(]//", path.read_text()) is None, path.name


def test_pure_functions_under_node():
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node (apt-get install nodejs)")
    if int(subprocess.check_output([node, "-p", "process.versions.node"], text=True).split(".")[0]) < 18:
        pytest.skip("node is older than 18, which brought node --test")
    files = sorted(str(path) for path in Path(__file__).parent.glob("*.test.mjs"))
    done = subprocess.run([node, "--test", *files], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
