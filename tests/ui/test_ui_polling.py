"""The readout asks at most once a second, only while it can be seen, and gives up gently."""

from __future__ import annotations

import json
import urllib.error
import urllib.request


def test_at_most_once_a_second(serve, visit):
    one = visit(serve().url)
    one.says(one.readout(), "")
    start = one.polls
    one.rest(3200)
    assert 2 <= one.polls - start <= 4


def test_a_hidden_tab_of_the_page_stops_it(serve, visit):
    one = visit(serve().url)
    one.says(one.readout(), "")
    one.page.evaluate("document.querySelector('#tabs').style.display = 'none'")
    one.rest(1100)
    start = one.polls
    one.rest(2500)
    assert one.polls == start
    one.page.evaluate("document.querySelector('#tabs').style.display = ''")
    one.rest(2200)
    assert one.polls > start


def test_a_hidden_browser_tab_stops_it(serve, visit):
    one = visit(serve().url)
    one.says(one.readout(), "")
    one.page.evaluate("Object.defineProperty(document, 'hidden', {value: true})")
    one.rest(1100)
    start = one.polls
    one.rest(2200)
    assert one.polls == start


def test_the_other_tab_has_a_readout_too(serve, visit):
    one = visit(serve().url)
    one.enable()
    one.page.locator("#tabs .tab-nav button", has_text="img2img").click()
    one.accordion("img2img").locator(".label-wrap").click()
    one.says(one.part("sentence", "img2img"), "next image")


def test_errors_are_said_and_asked_about_less_often(serve, visit):
    one = visit(serve().url)
    one.says(one.readout(), "")
    one.page.route("**/async-lowvram/status", lambda route: route.fulfill(status=500, body="{}"))
    one.says(one.readout(), "no answer from the webui")
    start = one.polls
    one.rest(5000)
    assert one.polls - start <= 2
    one.page.unroute("**/async-lowvram/status")


def test_interval_zero_asks_once(serve, visit):
    one = visit(serve("--interval", "0").url)
    one.rest(3000)
    assert one.polls == 1


def test_a_login_is_needed_and_enough(serve, visit):
    server = serve("--auth", "ann:secret")
    assert get(f"{server.url}async-lowvram/status")[0] == 401
    assert get(f"{server.url}async-lowvram/details")[0] == 401
    one = visit(server.url, login=("ann", "secret"))
    one.enable()
    one.says(one.part("sentence"), "next image")
    one.context.clear_cookies()
    one.says(one.readout(), "log in again")


def test_with_api_auth_alone_the_page_still_reads(serve, visit):
    server = serve("--api-auth", "api:key")
    assert get(f"{server.url}async-lowvram/status")[0] == 401
    assert get(f"{server.url}async-lowvram/status", "api:key")[0] == 200
    one = visit(server.url)
    one.enable()
    one.says(one.part("sentence"), "next image")


def get(url: str, credentials: str = "") -> tuple[int, dict]:
    import base64

    headers = {"Authorization": "Basic " + base64.b64encode(credentials.encode()).decode()} if credentials else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, {}
