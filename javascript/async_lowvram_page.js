/* Async lowvram: ties its accordions to the status route, to each other, and to what the server remembers. */

(function() {
    "use strict";

    const TABS = ["txt2img", "img2img"];
    const CHOICE_DELAY_MS = 400;
    const lib = globalThis.asyncLowvram = globalThis.asyncLowvram || {};
    let panels = [];
    let poller = null;
    let wantedRevision = 0;
    let last = null;
    let chosen = null; // what stands in the inputs, once somebody or the server has chosen
    let unsent = null; // what of that the server has not confirmed
    let sending = null; // the timer before it is sent, or true while it is

    function get(path, options) {
        return fetch(path, {...options, headers: {"X-Async-Lowvram-Key": panels[0].key, ...(options || {}).headers}});
    }

    async function askStatus() {
        const answer = await get("async-lowvram/status");
        return {ok: answer.ok, status: answer.status, body: answer.ok ? await answer.json() : null};
    }

    async function askDetails(revision) {
        if (revision === wantedRevision) {
            return;
        }
        wantedRevision = revision;
        const answer = await get("async-lowvram/details");
        if (answer.ok) {
            const details = await answer.json();
            panels.forEach((panel) => panel.draw(details));
        }
    }

    function showStatus(status) {
        last = status;
        poller.setInterval(status.async_lowvram.interval_s);
        panels.forEach((panel) => panel.show(status));
        if (chosen === null) {
            chosen = status.async_lowvram.choice;
            panels.forEach((panel) => panel.choose(chosen));
        } else if (unsent !== null && sending === null) {
            send();
        }
        askDetails(status.async_lowvram.revision).catch(() => (wantedRevision = 0));
    }

    function showFailure(code, seconds) {
        panels.forEach((panel) => {
            panel.say(code === 401 ? lib.say(panel.texts.login) : lib.say(panel.texts.silent, Math.round(seconds)));
        });
    }

    /** A control was changed by hand: the page shows it, the other tab follows, and the server remembers. */
    function onInput(event) {
        const panel = panels.find((one) => one.chosenBy(event.target));
        if (!panel) {
            return;
        }
        const choice = panel.choice;
        if (chosen === null || choice.enabled !== chosen.enabled || choice.buffer_mb !== chosen.buffer_mb) {
            chosen = unsent = choice;
            panels.forEach((other) => other.choose(choice));
            clearTimeout(sending);
            sending = setTimeout(send, CHOICE_DELAY_MS);
        }
        panels.forEach((other) => other.render());
    }

    /** The answer is the status after the choice. If there is none, the next status will send it again. */
    async function send() {
        const choice = unsent;
        sending = true;
        const headers = {"Content-Type": "application/json"};
        const answer = await get("async-lowvram/choice", {method: "POST", headers, body: JSON.stringify(choice)}).catch(() => null);
        sending = sending === true ? null : sending;
        if (answer && answer.ok && unsent === choice) {
            unsent = null;
            showStatus(await answer.json());
            showInSettings(choice);
        }
    }

    /** The settings page shows what the server remembers: applying other settings there must not undo it. */
    function showInSettings(choice) {
        const box = gradioApp().querySelector("#setting_async_lowvram_enabled input");
        const size = gradioApp().querySelector("#setting_async_lowvram_buffer_mb input[type=number]");
        if (box && size && last.async_lowvram.remembers) {
            box.checked = choice.enabled;
            size.value = choice.buffer_mb;
            updateInput(box);
            updateInput(size);
        }
    }

    onUiLoaded(function() {
        panels = TABS
            .map((tab) => [tab, gradioApp().getElementById(`script_${tab}_async_lowvram_panel`)])
            .filter((found) => found[1])
            .map(([tab, root]) => new lib.Panel(tab, root));
        if (!panels.length) {
            return;
        }
        gradioApp().addEventListener("input", onInput, true);
        poller = new lib.Poller({
            ask: askStatus,
            visible: () => !document.hidden && panels.some((panel) => panel.seen()),
            show: showStatus,
            fail: showFailure,
            later: (callback, seconds) => setTimeout(callback, seconds * 1000),
        });
        poller.start();
    });
})();
