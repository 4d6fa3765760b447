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


def test_the_planner_says_what_is_translated(strings):
    from lib_async_mover.bench.profiles import workload_of_profile
    from lib_async_mover.plan.budget import verdict
    from lib_async_mover.plan.planner import make_plan

    data = json.loads((ROOT / "tests" / "profiles" / "profile_sd15_b2_512.json").read_text())
    workload = workload_of_profile(data).scaled(5.8, 12.0)
    for budget_mb in (128, 700, 1700):
        sentence = verdict(make_plan(workload, budget_mb << 20), workload)
        assert re.sub(r"\d+(\.\d+)?", "{}", sentence) in strings.VERDICTS


def test_no_script_touches_what_wakes_every_extension():
    for path in JAVASCRIPT:
        for verb in ("innerHTML", "appendChild", "createElement", "insertBefore", "textContent =", "innerText ="):
            assert verb not in path.read_text(), f"{path.name}: {verb}"


def test_nothing_is_fetched_from_elsewhere():
    for path in (*JAVASCRIPT, ROOT / "style.css"):
        assert "//" not in re.sub(r"^\s*//.*$", "", path.read_text(), flags=re.M).replace("/*", ""), path.name


def test_pure_functions_under_node():
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node (apt-get install nodejs)")
    if int(subprocess.check_output([node, "-p", "process.versions.node"], text=True).split(".")[0]) < 18:
        pytest.skip("node is older than 18, which brought node --test")
    files = sorted(str(path) for path in Path(__file__).parent.glob("*.test.mjs"))
    done = subprocess.run([node, "--test", *files], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
